"""Likelihoods and greedy texts of many requests at once, against one at a time in torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from backends.harness.scoring import chunks, score
from backends.harness.writing import Writer
from backends.models import predictor
from backends.onnx.export import export
from backends.onnx.session import open_session, session_predictor
from knowledge.values import InputError, Workload

RNG = np.random.default_rng(0)


@pytest.fixture
def model(small):
    return small.transformer("llama", blocks=1)  # 64 tokens, 64 positions


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return {"folder": tmp_path_factory.mktemp("files")}


@pytest.fixture
def session(model, files):
    if "session" not in files:
        path = files["folder"] / "model.onnx"
        export(model, path, Workload(seq_len=12, threads=1))
        files["session"] = open_session(path, 1)
    return files["session"]


def tokens(count):
    return RNG.integers(1, 64, count).tolist()


def logits(model, text):
    ids = torch.tensor([text])
    with torch.no_grad():
        return model.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0].double()


def test_scores_are_those_of_one_text_at_a_time(model, session):
    question = tokens(9)
    requests = [(tokens(n), tokens(m)) for n, m in ((1, 1), (30, 5), (7, 20), (63, 1), (70, 3), (1, 64))]
    requests += [(question, [answer]) for answer in (3, 5, 9)] + [(question, [])]  # one pass for all of them
    passes = []

    def predict(batch):
        passes.append(len(batch["input_ids"]))
        return session_predictor(session)(batch)

    found = score(predict, requests, 64, 64)
    assert sum(passes) == len(requests) - 2
    for (context, continuation), (value, greedy) in zip(requests, found, strict=True):
        text = (context + continuation)[-65:]
        given = F.log_softmax(logits(model, text[:-1]), -1)[len(text) - 1 - len(continuation) :]
        assert value == pytest.approx(sum(float(row[t]) for row, t in zip(given, continuation, strict=True)), abs=1e-4)
        assert greedy == (given.argmax(-1).tolist() == continuation)
    same = score(predictor(model), requests, 64, 64)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in same], abs=1e-4)


def test_a_broken_model_has_finite_scores():
    assert score(lambda batch: np.full((*batch["input_ids"].shape, 64), np.nan), [([1], [2, 3])], 64) == [(-100, False)]


def test_what_the_model_cannot_read_is_refused(model):
    with pytest.raises(InputError, match="a text to score has 65 tokens, and the model 64 positions"):
        score(predictor(model), [([1], tokens(65))], 64)
    with pytest.raises(InputError, match="the tokenizer gives token 99, and the model knows 0 to 63"):
        score(predictor(model), [([1], [99])], 64, 64)


def test_batches_hold_as_many_tokens_as_memory_allows():
    assert [len(c) for c in chunks([[0] * 128] * 70)] == [32, 32, 6]
    assert [len(c) for c in chunks([[0] * 2048] * 3)] == [2, 1]
    assert [len(c) for c in chunks([[0] * 2048] * 3, 150_000)] == [1, 1, 1]


def test_written_texts_are_those_of_generate_with_and_without_a_cache(model, session):
    prompts = [tokens(n) for n in (3, 11, 3, 60, 1, 90)]
    expected = []
    for prompt in prompts:
        text = prompt[-52:]  # twelve of 64 positions are for what is written
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 12}
        with torch.no_grad():
            written = model.module.generate(torch.tensor([text]), attention_mask=torch.ones(1, len(text)), **options)
        expected.append(written[0, len(text) :].tolist())
    cached = Writer(session_predictor(session), 64, session)
    assert cached.decodes
    assert cached.masks
    assert cached.write(prompts, 12, lambda text: False) == expected
    plain = Writer(predictor(model), 64)
    assert not plain.decodes
    assert plain.write(prompts, 12, lambda text: False) == expected
    stop = expected[0][4]
    until = [text[: text.index(stop) + 1] if stop in text else text for text in expected]
    assert cached.write(prompts, 12, lambda text: text[-1] == stop) == until


def test_writing_ends_at_the_last_position(model, session):
    found = Writer(session_predictor(session), 64, session).write([tokens(40), tokens(2)], 256, lambda text: False)
    assert [len(text) for text in found] == [32, 32]  # half of the positions are the prompt's, if it needs them

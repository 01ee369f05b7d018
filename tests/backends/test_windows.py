"""Perplexity by windows and strides, against the obvious loop over tokens; what cannot be asked for."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from backends.data import Split
from backends.models import predictor
from backends.onnx.verification import Protocol
from backends.onnx.verify import protocol_of
from backends.readers import from_rows
from backends.tasks import task_for
from backends.windows import Windows, asked_windows, cut, scored_tokens, texts_of
from backends.zoo.catalog import zoo_data
from knowledge.values import InputError


def one_text(ids):
    """A text of 12-token samples that follow one another."""
    rows = np.asarray(ids).reshape(-1, 12)
    return Split({"input_ids": rows, "attention_mask": np.ones_like(rows)}, rows, np.arange(len(rows)))


def slowly(model, texts, window, stride):
    """Token by token: each is scored by the first window that reads it, from that window's own first token on."""
    losses = []
    for ids in texts:
        begin, scored = 0, 0
        while scored < len(ids):
            end = min(begin + window, len(ids))
            for at in range(max(scored, begin + 1), end):
                tensors = {
                    "input_ids": torch.tensor([ids[begin:at]]),
                    "attention_mask": torch.ones(1, at - begin).long(),
                }
                with torch.no_grad():
                    logits = model.forward(tensors)[0, -1].double()
                losses.append(-float(F.log_softmax(logits, -1)[ids[at]]))
            begin, scored = begin + stride, end
    return math.exp(np.mean(losses)), len(losses)


@pytest.mark.parametrize(("window", "stride"), [(12, 12), (16, 4), (10, 1), (20, 20), (7, 5)])
def test_every_window_and_stride_is_what_the_obvious_loop_gives(small, window, stride):
    model = small.transformer("llama", blocks=2)
    ids = np.random.default_rng(0).integers(0, 64, 48)
    rows = one_text(ids).take(np.array([0, 1, 3]))  # the third sample is another one's: two texts
    found = cut(rows, Windows(window, stride))
    expected, tokens = slowly(model, [ids[:24].tolist(), ids[36:].tolist()], window, stride)
    assert scored_tokens(found) == tokens
    assert task_for("causal-lm").evaluate(predictor(model), found).value == pytest.approx(expected, rel=1e-5)


def test_windows_as_long_as_the_samples_are_the_samples():
    split = zoo_data("stdlib-lm", 0).verification
    found = cut(split, Windows(128, 128))
    np.testing.assert_array_equal(found.inputs["input_ids"], split.inputs["input_ids"])
    np.testing.assert_array_equal(found.labels, split.labels)
    assert scored_tokens(found) == scored_tokens(split) == 96 * 127


def test_a_text_is_read_on_only_where_the_next_sample_follows():
    split = zoo_data("stdlib-lm", 0).verification
    assert sum(len(ids) for ids, _ in texts_of(split)) == split.labels.size
    texts = [ids for ids, _ in texts_of(split)]
    assert len(texts) == 1 + int((np.diff(split.places) > 1).sum())
    places = dict(zip(split.places.tolist(), split.inputs["input_ids"], strict=True))
    first = int(split.places[0])
    run = [places[first + n] for n in range(len(texts[0]) // 128)]
    np.testing.assert_array_equal(texts[0], np.concatenate(run))
    assert all(
        len(ids) == 12 for ids, _ in texts_of(Split({"input_ids": np.ones((3, 12), int)}, np.ones((3, 12), int)))
    )


def test_a_users_text_keeps_its_order(small, folder):
    from transformers import AutoTokenizer

    from backends.zoo.stdlib import WEIGHTS

    model = small.transformer("llama", vocab=1024)
    model.tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "stdlib-lm")
    split = from_rows(model, "eval-data", "x.txt", [{"text": f"line {n} of a text"} for n in range(60)])
    assert len(texts_of(split)) == 1
    assert len(texts_of(split.take(np.array([0, 2])))) == 2


def test_padding_is_no_text():
    ids = np.arange(24).reshape(2, 12)
    mask = np.ones_like(ids)
    mask[0, 8:] = 0
    split = Split({"input_ids": ids, "attention_mask": mask}, np.where(mask, ids, -100))
    found = cut(split, Windows(6, 3))
    assert scored_tokens(found) == 7 + 11
    assert set(found.labels[found.labels >= 0]) <= {*range(8), *range(12, 24)}


def test_what_cannot_be_asked_for_is_refused_in_one_line(small):
    model = small.transformer("gpt2")  # 64 positions
    split = one_text(np.arange(36) % 64)

    def ask(window, stride, split=split, metric="perplexity"):
        return asked_windows(window, stride, split, model.info, metric)

    assert ask(None, None) is None
    assert ask(24, None) == Windows(24, 24)
    assert ask(None, 4) == Windows(12, 4)
    for arguments, text in (
        ((65, None), "window: 65: tests:gpt2 has 64 positions; ask for that many or fewer"),
        ((1, 1), "window: 1: a token is scored by those before it; ask for 2 or more"),
        ((24, 25), "stride: 25: a window has 24 tokens; ask for 1 to 24"),
        ((24, 0), "stride: 0: a window has 24 tokens; ask for 1 to 24"),
        ((40, 4), "window: 40: the longest text of the verification data has 36 tokens; ask for that many or fewer"),
        ((24, 4, split, "agreement"), "window: 24: agreement is not measured in windows of a text; leave it out"),
        ((None, 4, small.split(small.cnn()), "accuracy"), "stride: 4: accuracy is not measured in windows"),
    ):
        with pytest.raises(InputError) as error:
            ask(*arguments)
        assert text in str(error.value)
        assert "\n" not in str(error.value)


def test_the_protocol_says_what_was_scored():
    split = one_text(np.arange(48))
    assert protocol_of(split) == Protocol(window=12, stride=12, tokens=44, windows=4)
    windows = Windows(24, 8)
    assert protocol_of(cut(split, windows), windows) == Protocol(window=24, stride=8, tokens=47, windows=4)

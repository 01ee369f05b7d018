"""lm-eval tasks of local files on an ONNX file, against likelihoods taken straight from torch."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lm_eval")

from backends.harness.model import HarnessModel
from backends.harness.tasks import answers, compare, load_tasks
from backends.harness.writing import Writer
from backends.models import load, predictor
from backends.onnx.export import export
from backends.onnx.session import open_session, session_predictor
from backends.zoo.stdlib import source_files
from knowledge.values import InputError, Workload

CHOICE = """
task: next-line
dataset_path: json
dataset_kwargs: {data_files: {test: choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TEXT = """
task: whole-text
dataset_path: json
dataset_kwargs: {data_files: {test: text.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}]
"""
WRITE = """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: choice.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
GROUP = """
group: both
task: [next-line, written]
aggregate_metric_list: [{metric: acc, aggregation: mean}]
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """zoo:stdlib-lm in torch, and behind its ONNX file."""
    model, path = load("zoo:stdlib-lm"), tmp_path_factory.mktemp("file") / "model.onnx"
    export(model, path, Workload(seq_len=128, threads=1))
    session = open_session(path, 1)
    longest, vocabulary = model.info.max_length, model.info.vocab_size
    in_torch = HarnessModel(Writer(predictor(model), longest), model.tokenizer, vocabulary)
    return (
        model,
        in_torch,
        HarnessModel(Writer(session_predictor(session), longest, session), model.tokenizer, vocabulary),
    )


@pytest.fixture
def tasks(folder, monkeypatch):
    """A folder of tasks made from the standard library's text, and their documents."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = source_files()["verification"][0].read_text().splitlines()
    lines = [line for line in lines if line.strip()][:120]
    documents = [
        {"context": "\n".join(lines[n : n + 3]) + "\n", "choices": [lines[n + k] for k in (9, 3, 6)], "answer": 1}
        for n in range(0, 60, 5)
    ]
    texts = [{"text": "\n".join(lines[:70])}, {"text": lines[80]}]
    for name, rows in (("choice", documents), ("text", texts)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "own").mkdir()
    for name, text in (("choice", CHOICE), ("text", TEXT), ("write", WRITE), ("group", GROUP)):
        (folder / "own" / f"{name}.yaml").write_text(text)
    return folder / "own", documents, texts


def straight(model, context, continuation):
    """Log-probability of tokens behind tokens, in one pass of the torch model."""
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        logits = model.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0].double()
    given = F.log_softmax(logits[len(context) - 1 : -1], -1)
    return float(given[torch.arange(len(continuation)), continuation].sum())


def test_a_local_multiple_choice_task_is_scored_as_torch_scores_it(tasks, models):
    folder, documents, _ = tasks
    model, _, in_onnx = models
    found = answers(load_tasks(["next-line"], folder, False), in_onnx, None)
    encode = model.tokenizer.encode
    right = 0
    for document, sample in zip(documents, found["samples"]["next-line"], strict=True):
        context = encode(document["context"].rstrip())
        values = []
        for choice in document["choices"]:
            whole = encode(document["context"] + choice)
            values.append(straight(model, whole[: len(context)], whole[len(context) :]))
        assert [value for value, _ in sample["filtered_resps"]] == pytest.approx(values, abs=1e-3)
        right += int(np.argmax(values)) == document["answer"]
    assert found["results"]["next-line"]["acc,none"] == pytest.approx(right / len(documents))


def test_a_local_text_has_the_perplexity_that_torch_gives_it(tasks, models):
    folder, _, texts = tasks
    model, _, in_onnx = models
    found = answers(load_tasks(["whole-text"], folder, False), in_onnx, None)
    loss, size, longest = 0.0, 0, model.info.max_length
    for row in texts:
        ids = [model.tokenizer.eos_token_id, *model.tokenizer.encode(row["text"])]
        size += len(row["text"].encode())
        for end in range(longest, len(ids) + longest - 1, longest):  # the last window is full too, if there are more
            last = min(end, len(ids) - 1)
            begin = max(0, last - longest)
            fresh = last - (end - longest)
            loss -= straight(model, ids[begin : last - fresh + 1], ids[last - fresh + 1 : last + 1])
    assert len(model.tokenizer.encode(texts[0]["text"])) > 2 * longest
    assert found["results"]["whole-text"]["byte_perplexity,none"] == pytest.approx(math.exp(loss / size), rel=1e-4)


def test_a_file_writes_what_torch_writes_up_to_the_stop(tasks, models):
    folder, documents, _ = tasks
    model, in_torch, in_onnx = models
    loaded = load_tasks(["written"], folder, False)
    texts = [
        [sample["filtered_resps"][0] for sample in answers(loaded, one, None)["samples"]["written"]]
        for one in (in_torch, in_onnx)
    ]
    assert texts[0] == texts[1]
    for document, text in zip(documents, texts[0], strict=True):
        ids = torch.tensor([model.tokenizer.encode(document["context"])])
        with torch.no_grad():
            written = model.module.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
            )
        whole = model.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == whole.split("\n")[0]


def test_two_models_are_compared_document_by_document(tasks, models):
    folder = tasks[0]
    _, in_torch, in_onnx = models
    same = compare(load_tasks(["both"], folder, False), in_torch, in_onnx, 6, False)
    assert {(s.task, s.metric, s.documents) for s in same} >= {("next-line", "acc", 6), ("written", "exact_match", 6)}
    for score in same:
        assert score.baseline == score.compressed
        assert (score.difference, score.difference_stderr) == (0, None if score.task == "both" else 0)
    assert [(s.metric, s.documents) for s in same if s.task == "both"] == [("acc", 6)]

    def noisy(batch):
        return in_torch.writer.predict(batch) + np.random.default_rng(0).normal(0, 4, model.info.vocab_size)

    model = models[0]
    worse = HarnessModel(Writer(noisy, model.info.max_length), model.tokenizer, model.info.vocab_size)
    (score,) = compare(load_tasks(["next-line"], folder, False), in_torch, worse, None, False)
    assert score.compressed != score.baseline
    assert score.difference_stderr > 0
    assert score.higher_is_better
    (text,) = compare(load_tasks(["whole-text"], folder, False), in_torch, worse, None, False)
    assert text.difference == pytest.approx(text.compressed - text.baseline)
    assert text.difference > 1
    assert text.difference_stderr is None
    assert text.higher_is_better is False


def test_code_of_the_users_runs_only_where_it_is_allowed(tasks):
    folder = tasks[0]
    (folder / "utils.py").write_text("open('ran', 'w').close()\ndef f(document): return 'x'")
    (folder / "coded.yaml").write_text(
        CHOICE.replace("next-line", "coded").replace('"{{context}}"', "!function utils.f")
    )
    (folder / "member.yaml").write_text("group: g\ntask: [coded]")
    for name in ("coded", "g", str(folder / "coded.yaml")):
        with pytest.raises(
            InputError, match=r"coded\.yaml: names Python code \(!function utils\.f\); add --allow-code"
        ):
            load_tasks([name], folder, False)
    assert not (folder.parent / "ran").exists()
    assert "coded" in load_tasks(["coded"], folder, True)["tasks"]
    assert (folder.parent / "ran").exists()


def test_templates_of_tasks_are_kept_in(tasks):
    folder = tasks[0]
    attack = "\"{{ cycler.__init__.__globals__.os.mkdir('ran') }}\""
    (folder / "attack.yaml").write_text(CHOICE.replace("next-line", "attack").replace('"{{context}}"', attack))
    with pytest.raises(InputError, match="attack: cannot be loaded: SecurityError"):
        load_tasks(["attack"], folder, False)
    assert not (folder.parent / "ran").exists()


def test_bad_tasks_are_one_line(tasks):
    folder = tasks[0]
    (folder / "empty.yaml").write_text(CHOICE.replace("choice.jsonl", "none.jsonl").replace("next-line", "empty"))
    with pytest.raises(InputError, match="empty: cannot be loaded: FileNotFoundError") as error:
        load_tasks(["empty"], folder, False)
    assert "\n" not in str(error.value)


def test_what_is_no_greedy_decoding_is_refused(tasks, models):
    folder = tasks[0]
    (folder / "sampled.yaml").write_text(
        WRITE.replace("max_gen_toks: 12", "do_sample: true, temperature: 0.7").replace("written", "sampled")
    )
    with pytest.raises(InputError, match="a task samples, and files write greedily"):
        answers(load_tasks(["sampled"], folder, False), models[2], 2)

"""Bad models, options and data: one line that names field, value and remedy, the exit code, nothing half-written."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from typed import GOOD, advisor, nothing_written, plan_file, refused, texts

pytestmark = pytest.mark.usefixtures("folder")


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("inspect",), ("recommend",), ("search", "--out", "study")])
def test_no_such_model(folder, command):
    refused(advisor(command[0], "nowhere/to/be/found", *command[1:]), 2, "model: nowhere/to/be/found: no such")
    nothing_written(folder)


def test_no_such_plan_run_or_artifact(folder):
    refused(advisor("run", "nope.yaml", "--out", "run"), 2, "plan: nope.yaml: no such file", "advisor search")
    refused(advisor("report", "nope"), 2, "run: nope: no such folder")
    refused(advisor("compare", "nope", "nada"), 2, "run: nope: no such folder")
    refused(advisor("verify", "nope"), 2, "artifact: nope: no such file")
    nothing_written(folder)


def test_a_folder_without_configuration(folder, model):
    (model / "config.json").unlink()
    refused(advisor("inspect", "model"), 2, "model", "config.json", "save_pretrained")


def test_a_truncated_safetensors_file(folder, model):
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    for command in (("inspect",), ("recommend",), ("search", "--eval-data", texts("e.jsonl", GOOD), "--out", "study")):
        refused(advisor(command[0], "model", *command[1:]), 2, "model.safetensors", "truncated")
    assert not Path("study").exists()


def test_a_safetensors_header_that_is_nonsense(folder, model):
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 10**12) + b"{}")
    refused(advisor("inspect", "model"), 2, "model.safetensors")


def test_weights_that_are_not_numbers(folder, model):
    from safetensors.numpy import load_file, save_file

    weights = load_file(model / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].flat[0] = np.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    plan = plan_file(model="model", task="text-classification", data={"eval": texts("e.jsonl", GOOD)})
    refused(advisor("run", plan, "--out", "run"), 2, "model: model", name, "NaN")
    assert not Path("run").exists()


def test_an_architecture_that_cannot_be_recognized(folder):
    from safetensors.numpy import save_file

    (folder / "model").mkdir()
    save_file({"a.weight": np.zeros((4, 4), np.float32)}, folder / "model" / "model.safetensors")
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": "mystery"}))
    refused(advisor("inspect", "model"), 2, "arch: model", "mystery", "--arch transformer | cnn | rnn | moe")


def test_a_task_that_cannot_be_recognized(model):
    config = json.loads((model / "config.json").read_text()) | {"architectures": ["Perceiver9"]}
    (model / "config.json").write_text(json.dumps(config))
    refused(advisor("inspect", "model"), 2, "task: model", "Perceiver9", "--task")


def test_a_broken_onnx_file(folder):
    Path("broken.onnx").write_bytes(b"\x08\x07not a model")
    refused(advisor("inspect", "broken.onnx"), 2, "broken.onnx")


def test_a_folder_that_holds_an_onnx_file(folder):
    for name in ("run", "run/artifact"):
        (folder / "run" / "artifact").mkdir(parents=True, exist_ok=True)
        (folder / "run" / "artifact" / "model.onnx").touch()
        (folder / "run" / "artifact" / "config.json").write_text("{}")
        for command in (("inspect",), ("recommend",)):
            words = (f"model: {name}: holds an ONNX file", "give the file: run/artifact/model.onnx")
            refused(advisor(*command, name), 2, *words)


# -- names and budgets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--target", "mobil"], ["target: mobil: unknown target", "did you mean mobile"]),
        (["--target", "mine.yaml"], ["mine.yaml", "no such file"]),
        (["--task", "image-clasification"], ["task: image-clasification", "did you mean image-classification"]),
        (["--task", "segmentation"], ["task: segmentation: is not supported yet"]),
        (["--goal", "sizes"], ["goal: sizes", "did you mean size"]),
        (["--max-drop", "-1"], ["max-drop: -1: is below zero", "2pp"]),
        (["--max-size", "-5MB"], ["max-size: -5MB: is below zero"]),
        (["--max-size", "5 apples"], ["max-size: 5 apples: unknown unit", "50MB"]),
        (["--max-latency", "soon"], ["max-latency: soon: is not a number"]),
        (["--min-speedup", "0"], ["min-speedup: 0: must be above zero"]),
        (["--batch", "0"], ["batch: 0: is below 1", "from 1 on"]),
        (["--seed", "abc"], ["seed: abc: is not a whole number", "from 0 to 4294967295"]),
        (["--seed", "-1"], ["seed: -1: is below 0"]),
        (["--seed", "4294967296"], ["seed: 4294967296: is above 4294967295"]),
        (
            ["--metric", "acuracy"],
            ["metric: acuracy: unknown metric for image-", "did you mean accuracy?"],
        ),
        (["--metric", "nosuch"], ["metric: nosuch: unknown metric", "known: accuracy, f1 (or module:function)"]),
        (["--target", "nosuch"], ["target: nosuch: unknown target; known: ", "mobile", "(or a YAML file)"]),
        (["--knowledge", "nowhere"], ["knowledge: nowhere: no such folder"]),
        (["--eval-data", "./nowhere.npz"], ["eval-data: ./nowhere.npz: no such file"]),
    ],
)
def test_options_that_mean_nothing(folder, args, words):
    refused(advisor("recommend", "zoo:digits-cnn", *args), 2, *words)
    nothing_written(folder)


def test_an_unknown_architecture():
    refused(advisor("recommend", "--arch", "transfomer"), 2, "arch: transfomer", "did you mean transformer")


def test_an_unknown_technique():
    refused(advisor("knowledge", "techniques", "int8_statik"), 2, "int8_statik: unknown technique", "int8_static")


def test_an_unknown_metric(folder):
    plan = plan_file(metric="acuracy")
    refused(advisor("run", plan, "--out", "run"), 2, "acuracy", "accuracy")
    nothing_written(folder, "plan.yaml")


def test_a_budget_that_nothing_meets():
    shown = advisor("recommend", "zoo:digits-cnn", "--max-size", "1KB")
    assert shown.exit_code == 1
    assert "None fits." in shown.stdout
    assert "Nearest:" in shown.stdout
    assert "where 1.00 KB is asked for" in shown.stdout
    advice = json.loads(advisor("recommend", "zoo:digits-cnn", "--max-size", "1KB", "--json").stdout)
    assert not any(chain["fits"] for chain in advice["chains"])
    nearest = next(chain for chain in advice["chains"] if chain["id"] == advice["nearest"])
    assert {miss["limit"] for miss in nearest["misses"]} >= {"size"}


# -- data --------------------------------------------------------------------------------------------------------------


def test_empty_data(folder, model):
    plan = plan_file(model="model", task="text-classification", data={"eval": texts("empty.jsonl", [])})
    refused(advisor("run", plan, "--out", "run"), 2, "eval-data: empty.jsonl: holds no samples")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "", "label": 1}, ("'text' of sample 41 is empty; leave such samples out",)),
        ({"text": 7, "label": 1}, ("'text' of sample 41 is 7, not a text",)),
        ({"sentence": "good day", "label": 1}, ("sample 41 has no 'text'; it holds sentence, label",)),
        ({"text": "good day"}, ("sample 41 has no label; label every sample, or none of them",)),
        ({"text": "good day", "label": None}, ("sample 41 has no label",)),
        ({"text": "good day", "label": "fine"}, ("label 'fine' of sample 41 is no class number",)),
    ],
)
def test_samples_that_lack_something(folder, model, row, words):
    plan = plan_file(model="model", task="text-classification", data={"eval": texts("odd.jsonl", [*GOOD, row])})
    refused(advisor("run", plan, "--out", "run"), 2, "eval-data: odd.jsonl: ", *words)


def test_labels_out_of_range(folder, model):
    rows = [*GOOD, {"text": "good day", "label": 7}]
    plan = plan_file(model="model", task="text-classification", data={"eval": texts("wrong.jsonl", rows)})
    refused(advisor("run", plan, "--out", "run"), 2, "eval-data: wrong.jsonl", "7")
    assert not Path("run").exists()


def test_labels_out_of_range_in_arrays(folder):
    pixels = np.zeros((30, 1, 8, 8), np.float32)
    np.savez("wrong.npz", pixels=pixels, labels=np.full(30, 10))
    refused(advisor("run", plan_file(data={"eval": "wrong.npz"}), "--out", "run"), 2, "eval-data: wrong.npz", "10")
    assert not Path("run").exists()


def test_a_model_without_data(folder, model):
    plan = plan_file(model="model", task="text-classification")
    refused(advisor("run", plan, "--out", "run"), 2, "--eval-data")

"""Bad input: one line that names field, value and remedy, the right exit code, nothing half-written."""

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typed import GOOD, ROOT, advisor, nothing_written, plan_file, refused, texts

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


# -- the user's code, stages that do not apply, files that are not sound -----------------------------------------------


FACTORY = """
from pathlib import Path
Path("ran").touch()

import numpy as np
from torch import nn

class Net(nn.Module):
    task = "image-classification"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(x.flatten(1))

def make():
    return Net(), {"pixels": np.zeros((2, 1, 8, 8), np.float32)}
"""


@pytest.fixture
def digits():
    """Samples for networks of 8 × 8 pixels."""
    rng = np.random.default_rng(0)
    np.savez("digits.npz", pixels=rng.normal(size=(40, 1, 8, 8)).astype(np.float32), labels=np.arange(40) % 10)
    return {"eval": "digits.npz"}


@pytest.fixture
def stage(folder, monkeypatch, digits):
    """The folder that a stage wrote of a model of the user's factory, which cannot be told without --arch."""
    from backends.models import load
    from backends.structure import save

    Path("users_net.py").write_text(FACTORY)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("ADVISOR_STORE", str(folder / "store"))
    save(load("users_net:make", arch="cnn", allow_code=True), Path("stage"))
    Path("ran").unlink()
    sys.modules.pop("users_net")
    yield "stage"
    sys.modules.pop("users_net", None)


@pytest.mark.parametrize("command", [("inspect",), ("recommend",), ("search", "--out", "out")])
def test_a_stages_folder_runs_no_code_unasked(stage, command):
    refused(advisor(command[0], stage, *command[1:]), 2, "users_net:make", "--allow-code")
    refused(advisor("run", plan_file(model=stage), "--out", "out"), 2, "users_net:make", "--allow-code")
    assert not Path("ran").exists()
    assert not Path("out").exists()


def test_a_stages_folder_runs_code_that_is_allowed_and_keeps_its_architecture(stage, digits):
    shown = advisor("run", plan_file(model=stage, data=digits), "--out", "out", "--allow-code", "--json")
    assert shown.exit_code in (0, 1), shown.output
    assert Path("ran").exists()


def test_an_architecture_that_was_told_is_in_the_plan(stage, digits):
    from advisor.advise import advise
    from advisor.execute import open_pipeline
    from advisor.proposal import to_plan
    from advisor.request import Request

    advice = advise(Request.parse(model="users_net:make", arch="cnn", data=digits))
    plan = to_plan(advice.chains[0], advice)
    assert plan.arch == "cnn"
    assert open_pipeline(plan).source.info.family == "cnn"
    advice = advise(Request.parse(model="zoo:digits-cnn"))
    assert to_plan(advice.chains[0], advice).arch == ""


@pytest.fixture
def onnx_file(folder, monkeypatch, digits):
    """An exported network, with shared linear weights."""
    import torch

    monkeypatch.setenv("ADVISOR_STORE", str(folder / "store"))
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10))
    axes = {"pixels": {0: "batch"}}
    torch.onnx.export(
        net, (torch.zeros(2, 1, 8, 8),), "net.onnx", input_names=["pixels"], dynamic_axes=axes, dynamo=False
    )
    return Path("net.onnx")


def test_a_stage_that_changes_no_file_on_an_onnx_file(onnx_file, digits):
    plan = plan_file(model="net.onnx", data=digits, stages=[{"technique": "magnitude"}])
    refused(advisor("run", plan, "--out", "run"), 2, "stages: magnitude", "is an ONNX file", "name the torch model")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("stages", "word"),
    [
        ([{"technique": "layer_drop"}], "layer_drop: does not apply: a cnn model; needs moe or transformer"),
        ([{"technique": "distill", "params": {"compression": 1000}}], "distill: does not apply"),
    ],
)
def test_a_stage_that_does_not_apply(stages, word):
    refused(advisor("run", plan_file(stages=stages), "--out", "run"), 2, word)
    assert not Path("run").exists()


def test_a_later_stage_that_does_not_apply_to_what_is_left(folder, monkeypatch):
    monkeypatch.setenv("ADVISOR_STORE", str(folder / "store"))
    plan = plan_file(stages=[{"technique": "magnitude"}, {"technique": "int8_dynamic"}])
    refused(advisor("run", plan, "--out", "run"), 2, "int8_dynamic: does not apply: a cnn model")


def test_an_onnx_file_with_weights_that_are_not_numbers(onnx_file, digits):
    import onnx

    proto = onnx.load(onnx_file)
    weight = next(i for i in proto.graph.initializer if len(i.dims) == 2)
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(proto, onnx_file)
    plan = plan_file(model="net.onnx", data=digits)
    refused(advisor("run", plan, "--out", "run"), 2, "model: net.onnx", weight.name, "1 NaN")
    assert not Path("run").exists()


def test_an_onnx_file_that_keeps_its_weights_beside_it(onnx_file, digits):
    import onnx

    from backends.sources import open_source

    onnx.save(onnx.load(onnx_file), "split.onnx", save_as_external_data=True, location="split.bin", size_threshold=0)

    def fingerprint():
        task = "image-classification"
        return open_source("split.onnx", task=task, arch=None, metric="", files=digits, seed=0).fingerprint

    before = fingerprint()
    shown = advisor("run", plan_file(model="split.onnx", data=digits, stages=[]), "--out", "run")
    assert shown.exit_code in (0, 1), shown.output
    weights = bytearray(Path("split.bin").read_bytes())
    weights[3] ^= 0x80  # the sign of one weight
    Path("split.bin").write_bytes(weights)
    assert fingerprint() != before
    Path("split.bin").unlink()
    onnx.checker.check_model(onnx.load("run/artifact/model.onnx"))


# -- plans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, ["colour: red: unknown field", "known fields: schema, model, task"]),
        (
            {"stages": [{"technique": "fp16", "bar": 1}]},
            ["stages.0.bar: 1: unknown field; known fields: technique, params"],
        ),
        ({"budget": {"max_drop": {"amount": 3}}}, ["budget.max_drop.unit: is missing; add `unit:`"]),
        ({"workload": {"bach": 1}}, ["workload.bach: 1: unknown field", "batch, seq_len, image_size, threads"]),
        ({"seed": -1}, ["seed: -1: input should be greater than or equal to 0"]),
        ({"task": "nosuch"}, ["task: nosuch: unknown task; known: causal-lm"]),
        ({"stages": [{"technique": "fp17"}]}, ["fp17: unknown technique", "fp16"]),
        ({"stages": [{"technique": "magnitude", "params": {"ratio": 1.5}}]}, ["magnitude.ratio: 1.5", "less than 1"]),
        ({"stages": [{"technique": "magnitude", "params": {"ratoi": 0.5}}]}, ["magnitude.ratoi", "did you mean ratio"]),
        (
            {"stages": [{"technique": "fp16"}, {"technique": "magnitude"}]},
            ["stages[1]: magnitude", "move it before fp16"],
        ),
        ({"stages": [{"technique": "finetune"}]}, ["stages[0]: finetune", "put a lossy stage before it"]),
        ({"model": "package.module:factory"}, ["model: package.module:factory", "--allow-code"]),
        ({"metric": "package.module:score"}, ["metric: package.module:score", "--allow-code"]),
        ({"budget": {"max_drop": {"amount": -1, "unit": "pp"}}}, ["budget.max_drop.amount: -1", "0"]),
        ({"workload": {"batch": 0}}, ["workload.batch: 0"]),
    ],
)
def test_plans_that_cannot_be_run(folder, changes, words):
    refused(advisor("run", plan_file(**changes), "--out", "run"), 2, "plan.yaml", *words)
    nothing_written(folder, "plan.yaml")


def test_a_plan_without_a_model(folder):
    shown = advisor("run", plan_file(model=None), "--out", "run")
    refused(shown, 2, "plan.yaml: model: None: input should be a valid string")
    Path("plan.yaml").write_text(Path("plan.yaml").read_text().replace("model: null\n", ""))
    line = refused(advisor("run", "plan.yaml", "--out", "run"), 2, "plan.yaml: model: is missing; add `model:`")
    assert "{" not in line


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "!!python/object/apply:os.system ['true']", "\x00"])
def test_plan_files_that_are_no_plans(folder, text):
    Path("plan.yaml").write_text(text)
    refused(advisor("run", "plan.yaml", "--out", "run"), 2, "plan.yaml")
    nothing_written(folder, "plan.yaml")


# -- while it runs -----------------------------------------------------------------------------------------------------


def can_mount():
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="a small disk needs a private mount")
@pytest.mark.parametrize("full", ["store", "out"])
def test_a_full_disk(folder, model, full):
    """One megabyte where the stage results, or the run folder, should be; the model has 1.8 MB."""
    (folder / full).mkdir()
    plan = plan_file(model="model", task="text-classification", data={"eval": texts("e.jsonl", GOOD)})
    command = f"exec {sys.executable} {ROOT / 'cli.py'} run {plan} --out out/run"
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=1m none {full} && {command}"],
        capture_output=True,
        text=True,
        env=os.environ | {"ADVISOR_STORE": str(folder / "store")},
        check=False,
    )
    assert ended.returncode == 3, ended.stderr
    assert "the disk is full" in ended.stderr.strip().splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert not [p for p in folder.rglob(".*") if p.name != ".locks"]


@pytest.fixture
def filling_disk(monkeypatch):
    """A disk that is full as soon as the first lossy stage of a run or a trial wants to store its record."""
    write, told = Path.write_text, []

    def full(self, text, *arguments, **named):
        if self.name == "record.json" and json.loads(text)["technique"] != "export":
            told.append(self)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, text, *arguments, **named)

    monkeypatch.setattr(Path, "write_text", full)
    return told


@pytest.mark.parametrize(
    "command",
    [("run", "plan.yaml", "--out", "out"), ("search", "zoo:digits-cnn", "--training", "none", "--out", "out")],
    ids=["run", "search"],
)
def test_a_disk_that_fills_up_ends_a_command_and_keeps_what_was_done(folder, monkeypatch, filling_disk, command):
    monkeypatch.setenv("ADVISOR_STORE", str(folder / "store"))
    plan_file()
    refused(advisor(*command), 3, str(folder / "store"), "the disk is full", "finished stages are kept")
    assert len(filling_disk) == 1  # the first trouble ends it
    (kept,) = (folder / "store").glob("*/record.json")
    assert json.loads(kept.read_text())["technique"] == "export"
    left = {p.name for p in Path("out").iterdir()}
    assert left <= {"plan.yaml", "study.db"}
    assert not [p for p in folder.rglob(".*") if p.name != ".locks"]


@pytest.mark.parametrize(("full", "kept"), [("run.json", "verification.json"), ("pareto.json", "study.db")])
def test_a_result_that_finds_no_room_is_left_out_whole(folder, monkeypatch, full, kept):
    monkeypatch.setenv("ADVISOR_STORE", str(folder / "store"))
    write = Path.write_bytes

    def refuse(self, data):
        if f".{Path(full).stem}-" in self.name:
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    command = ("run", plan_file(), "--out", "out")
    if full == "pareto.json":
        command = ("search", "zoo:digits-cnn", "--training", "none", "--trials", "1", "--out", "out")
    refused(advisor(*command), 3, full, "the disk is full")
    assert not (folder / "out" / full).exists()
    assert (folder / "out" / kept).exists()
    assert not [p for p in (folder / "out").rglob(".*")]


def test_interrupted_search_is_whole_and_goes_on(folder):
    """Ctrl-C in the middle of a study: 130, the study can be read, and the same command finishes it."""
    command = [sys.executable, str(ROOT / "cli.py"), "search", "zoo:digits-cnn", "--training", "none", "--out", "study"]
    command += ["--trials", "3", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("[1/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130, rest
    assert rest.strip().splitlines()[-1].startswith("advisor: interrupted")
    assert "Traceback" not in rest
    assert not Path("study/pareto.json").exists()

    again = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, timeout=300)
    assert again.returncode in (0, 1), again.stderr
    assert "[1/" not in again.stderr  # the first trial was not repeated
    pareto = json.loads(Path("study/pareto.json").read_text())
    assert sum(t["state"] in ("complete", "pruned") for t in pareto["trials"]) >= 3

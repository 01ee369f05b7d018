"""Packed weights beside the file that ships: the same numbers, what they take in every report, none where useless."""

import json
import re
from dataclasses import replace

import pytest
import torch

from advisor.execute import run_plan
from advisor.packing import packed_beside, packed_weights
from backends.models import load
from backends.prune.packed import load_packed
from backends.runner import Pipeline
from backends.store import Store
from backends.structure import load_checkpoint, read_weights
from knowledge.techniques.catalog import build
from knowledge.values import Budget, Drop, InputError, Plan, Stage, Workload

PLAN = Plan(
    model="zoo:digits-cnn",
    task="image-classification",
    target="server-cpu",
    workload=Workload(threads=1),
    budget=Budget(max_drop=Drop(amount=100, unit="pp")),
    stages=(Stage(technique="magnitude", params={"ratio": 0.5}),),
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    return Pipeline.open("zoo:digits-cnn", workload=PLAN.workload, seed=0, store=store)


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    return run_plan(PLAN, tmp_path_factory.mktemp("runs") / "run", pipeline=pipeline).folder


@pytest.fixture(scope="module")
def records(pipeline, folder):
    return list(pipeline.run([build(stage) for stage in PLAN.stages]))


def test_a_pruned_run_ships_its_weights_without_zeros(folder):
    plain = read_weights(folder / "stages" / "01-magnitude" / "model.safetensors")
    packed = load_packed(folder / "artifact" / "packed" / "model.packed.safetensors")
    assert packed.keys() == plain.keys()
    for name, tensor in plain.items():
        assert (packed[name].dtype, packed[name].shape) == (tensor.dtype, tensor.shape)
        assert packed[name].numpy().tobytes() == tensor.numpy().tobytes(), name
        if tensor.is_floating_point():
            assert not bool((torch.signbit(tensor) & (tensor == 0)).any()), name  # −0 would be stored


def test_the_packed_folder_is_a_model_like_any_other(folder):
    expected = load_checkpoint(folder / "stages" / "01-magnitude")
    found = load(str(folder / "artifact" / "packed"))
    assert found.info == expected.info
    state = expected.module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.module.state_dict().items())


def test_what_they_take_stands_in_every_report(folder):
    file = folder / "artifact" / "packed" / "model.packed.safetensors"
    verification = json.loads((folder / "verification.json").read_text())
    said = verification["packed"]
    assert said["file"] == "packed/model.packed.safetensors"
    assert said["size_bytes"] == file.stat().st_size
    assert said["plain_bytes"] == sum(tensor.nbytes for tensor in load_packed(file).values())
    assert said["size_bytes"] < 0.56 * said["plain_bytes"]
    assert said["download_bytes"] < said["size_bytes"]
    why = next(e["text"] for e in verification["explanations"] if e["rule"] == "zeros-stored-densely")
    sizes = [said["size_bytes"], said["plain_bytes"], verification["compressed"]["size_bytes"]]
    told = [f"{size / 1e6:.3g} MB" for size in sizes]
    assert re.findall(r"[\d.]+ MB", why) == told
    for name in ("report.md", "report.html", "artifact/README.md"):
        text = (folder / name).read_text()
        assert "weights, packed" in text
        assert "ONNX stores zeros like any number" in text
        assert all(size in text for size in told)


def test_the_code_on_the_card_loads_them(folder, monkeypatch):
    monkeypatch.chdir(folder / "artifact")
    code = re.findall(r"```python\n(.*?)```", (folder / "artifact" / "README.md").read_text(), re.S)[-1]
    names = {}
    exec(code, names)
    state = names["module"].state_dict()
    assert names["weights"].keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in names["weights"].items())


def test_they_are_packed_once_and_found_beside_the_file(pipeline, records, folder):
    stored, found = packed_weights(pipeline, records)
    at = (stored / "model.packed.safetensors").stat().st_mtime_ns
    again = packed_weights(pipeline, records)
    assert again == (stored, found)
    assert (stored / "model.packed.safetensors").stat().st_mtime_ns == at
    assert packed_beside(folder / "artifact" / "model.onnx") == found


def test_nothing_is_packed_where_that_is_no_smaller_or_nothing_was_pruned(pipeline, records, monkeypatch):
    assert packed_weights(pipeline, [*records[:-1], replace(records[-1], file_bytes=1_000_000)]) is None
    assert packed_weights(pipeline, [pipeline.baseline]) is None
    monkeypatch.setattr("advisor.packing.USEFUL", 0.5)  # of the plain bytes, where 0.54 are left
    assert packed_weights(pipeline, records) is None


def test_broken_packed_weights_are_refused(folder, tmp_path):
    (tmp_path / "packed").mkdir()
    whole = folder / "artifact" / "packed"
    (tmp_path / "packed" / "structure.json").write_bytes((whole / "structure.json").read_bytes())
    file = tmp_path / "packed" / "model.packed.safetensors"
    file.write_bytes((whole / file.name).read_bytes()[:-1])
    with pytest.raises(InputError, match=r"packed: .*: unreadable"):
        packed_beside(tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"packed: .*: unreadable"):
        load_checkpoint(tmp_path / "packed")
    file.unlink()
    assert packed_beside(tmp_path / "model.onnx") is None

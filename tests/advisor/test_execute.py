"""What a run leaves in its folder: the shipped model's own configuration, stages of its own, nothing of other plans."""

import errno
import json
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from advisor import execute
from advisor.execute import _keep_stage, _ship, begin, clear_results, run_plan
from advisor.folders import check_run_folder
from advisor.plans import load_plan
from backends.records import EXPORT
from backends.runner import Pipeline
from backends.store import Store
from knowledge.techniques.catalog import build
from knowledge.values import Budget, DiskFull, Drop, InputError, Plan, RunFailed, Stage, Workload

PLAN = Plan(
    model="zoo:digits-cnn",
    task="image-classification",
    target="server-cpu",
    workload=Workload(threads=1),
    budget=Budget(max_drop=Drop(amount=100, unit="pp")),
    stages=(Stage(technique="magnitude", params={"ratio": 0.3}), Stage(technique="fp16")),
)
OTHER = PLAN.model_copy(update={"stages": (Stage(technique="fp16"),)})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def pipeline(store):
    return Pipeline.open("zoo:digits-cnn", workload=PLAN.workload, seed=0, store=store)


# -- the artifact ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("technique", "params"), [("layer_drop", {"ratio": 0.5}), ("distill", {"epochs": 0, "compression": 2})]
)
def test_the_configuration_that_ships_is_the_smaller_models(technique, params, store, tmp_path, monkeypatch):
    from backends.structure import load_checkpoint

    opened = Pipeline.open("zoo:stdlib-gpt2", workload=Workload(seq_len=32), seed=0, store=store)
    chain = [build(Stage(technique=technique, params=params)), build(Stage(technique="finetune", params={"epochs": 0}))]
    records = list(islice(opened.run(chain), 2))
    opened._held = None  # as in a run that takes every stage from the store
    (tmp_path / "any.onnx").touch()  # which file it is does not matter here
    monkeypatch.setattr(opened, "file", lambda _: tmp_path / "any.onnx")
    _ship(opened, [*records, replace(records[-1], technique=EXPORT)], tmp_path)
    shipped = json.loads((tmp_path / "config.json").read_text())
    small = load_checkpoint(opened.folder(records[1])).module.config
    original = opened.source.model.module.config
    sizes = ("n_layer", "n_embd", "n_head", "n_inner")
    assert [shipped[n] for n in sizes] == [getattr(small, n) for n in sizes]
    assert [shipped[n] for n in sizes] != [getattr(original, n) for n in sizes]


# -- stages ------------------------------------------------------------------------------------------------------------


def test_editing_a_kept_stage_leaves_the_store_alone(tmp_path):
    stored, kept = tmp_path / "store", tmp_path / "stages" / "01-x"
    stored.mkdir()
    (stored / "record.json").write_text("{}")
    _keep_stage(stored, kept)
    with (kept / "record.json").open("r+") as file:
        file.write("broken")
    assert (stored / "record.json").read_text() == "{}"


def test_a_large_file_of_a_stage_is_linked_and_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "LINKED_BYTES", 4)
    stored, kept = tmp_path / "store", tmp_path / "stages" / "01-x"
    stored.mkdir()
    (stored / "model.safetensors").write_bytes(b"weights")
    _keep_stage(stored, kept)
    assert (kept / "model.safetensors").samefile(stored / "model.safetensors")
    assert (kept / "model.safetensors").stat().st_mode & 0o222 == 0
    _keep_stage(stored, kept)  # again, over what is read-only


def test_a_stage_is_kept_whole_or_not_at_all(tmp_path, monkeypatch):
    stored, kept = tmp_path / "store", tmp_path / "stages" / "01-x"
    stored.mkdir()
    for name in ("model.safetensors", "record.json"):
        (stored / name).write_bytes(b"weights")

    def full(source, target):
        Path(target).write_bytes(b"wei")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(execute.shutil, "copyfile", full)
    with pytest.raises(DiskFull, match="01-x: the disk is full"):
        _keep_stage(stored, kept)
    assert not list((tmp_path / "stages").iterdir())


# -- a folder that was used before -------------------------------------------------------------------------------------

OF_A_RUN = (
    "run.json",
    "verification.json",
    "report.html",
    "report.md",
    "artifact/model.onnx",
    "stages/01-x/record.json",
)


@pytest.fixture
def used(tmp_path):
    """The folder of a finished run of PLAN, with a file of the user's."""
    begin(PLAN, tmp_path)
    for name in (*OF_A_RUN, "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("of the first plan")
    return tmp_path


def test_the_same_plan_takes_up_its_folder(used):
    begin(PLAN, used)
    assert all((used / name).exists() for name in OF_A_RUN)


def test_what_is_expected_of_a_plan_and_why_is_no_other_plan(used):
    begin(PLAN.model_copy(update={"reasons": ("evidence since then",)}), used)
    assert all((used / name).exists() for name in OF_A_RUN)


def test_another_plan_clears_what_the_first_left(used):
    begin(OTHER, used)
    assert sorted(p.name for p in used.iterdir()) == ["notes.txt", "plan.yaml"]
    assert load_plan(used / "plan.yaml") == OTHER


def test_the_finished_run_of_another_plan_is_not_replaced(pipeline, used):
    with pytest.raises(InputError, match=r"holds the finished run of another plan, .*: magnitude → fp16; name another"):
        run_plan(OTHER, used, pipeline=pipeline)
    assert all((used / name).exists() for name in OF_A_RUN)


def test_an_unfinished_run_may_become_that_of_another_plan(used):
    (used / "run.json").unlink()
    check_run_folder(used, OTHER)


def test_a_folder_without_a_plan_is_the_users(pipeline, tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is no run folder: it holds stages"):
        run_plan(PLAN, tmp_path, pipeline=pipeline)
    assert [p.name for p in tmp_path.rglob("*")] == ["stages", "thesis.txt"]


def test_a_failing_run_of_another_plan_leaves_no_results_of_the_first(pipeline, used, monkeypatch):
    def fail(*_, **__):
        raise RunFailed("out of order")

    monkeypatch.setattr(execute, "measure", fail)
    with pytest.raises(RunFailed):
        run_plan(OTHER, used, pipeline=pipeline, over=True)
    assert load_plan(used / "plan.yaml") == OTHER
    assert [p.name for p in (used / "stages").iterdir()] == ["01-fp16"]
    assert not any((used / name).exists() for name in OF_A_RUN)


def test_results_are_cleared_from_the_one_that_marks_a_run_as_finished(used, monkeypatch):
    gone = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **k: (gone.append(self.name), unlink(self, **k)))
    clear_results(used)
    assert gone[0] == "run.json"


# -- a full disk -------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_keeps_the_stages_that_were_done(pipeline, tmp_path, monkeypatch):
    """The second stage finds no room: the first stays in the store, and in the run folder."""
    fresh = Pipeline(pipeline.source, pipeline.workload, pipeline.seed, Store(tmp_path / "store"))
    write = Path.write_text

    def full(self, text, *arguments, **named):
        if self.name == "record.json" and '"technique": "fp16"' in text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, text, *arguments, **named)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFull, match="the disk is full; finished stages are kept"):
        run_plan(PLAN, tmp_path / "run", pipeline=fresh)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "run.json").exists()
    assert [p.name for p in (tmp_path / "run" / "stages").iterdir()] == ["01-magnitude"]
    again = Pipeline(pipeline.source, pipeline.workload, pipeline.seed, Store(tmp_path / "store"))
    reused = {r.technique: r.reused for r in again.run([build(stage) for stage in PLAN.stages])}
    assert reused == {"magnitude": True, "export": True, "fp16": False}
    assert not list((tmp_path / "store").glob(".partial-*"))

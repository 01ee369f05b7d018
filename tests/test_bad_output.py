"""Folders that cannot be written, or hold something else; and what must not be left behind."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from typed import GOOD, ROOT, advisor, nothing_written, plan_file, refused, texts

SEARCH = ("search", "zoo:digits-lstm", "--training", "none", "--trials", "1")


@pytest.fixture(autouse=True)
def own_store(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_STORE", str(tmp_path / "store"))


# -- folders that cannot be made -----------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/advisor"])
def test_a_folder_that_cannot_be_made(folder, out):
    (folder / "file").write_text("mine")
    for command in (("run", plan_file()), SEARCH):
        refused(advisor(*command, "--out", out), 2, f"out: {out}: ", "name a folder")
    nothing_written(folder, "file", "plan.yaml")


# -- folders that hold something else ------------------------------------------------------------------------------


def test_a_folder_of_the_users_is_left_alone(folder, model):
    before = {p: p.read_bytes() for p in model.iterdir()}
    for command, kind in ((("run", plan_file()), "run"), (SEARCH, "study")):
        words = (f"out: model: is no {kind} folder: it holds config.json, ", "name another folder, or remove this one")
        refused(advisor(*command, "--out", "model"), 2, *words)
    assert {p: p.read_bytes() for p in model.iterdir()} == before


def test_what_is_finished_is_not_written_over(folder):
    """One search, one run; each refuses another question, takes the same one again, and is not the other."""
    assert advisor(*SEARCH, "--out", "study").exit_code in (0, 1)
    assert advisor("run", "study/best-plan.yaml", "--out", "run").exit_code in (0, 1)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    other = plan_file(stages=[])
    shown = advisor("run", other, "--out", "run")
    refused(shown, 2, "out: run: holds the finished run of another plan, zoo:digits-lstm for server-cpu: ")
    refused(advisor("run", other, "--out", "study"), 2, "out: study: is no run folder: it holds ")
    words = (
        "out: study: holds the finished search of another question, zoo:digits-lstm for server-cpu",
        "name another",
    )
    refused(advisor(*SEARCH, "--max-drop", "1pp", "--out", "study"), 2, *words)
    refused(advisor(*SEARCH, "--out", "run"), 2, "out: run: is no study folder: it holds ")
    (folder / "plan.yaml").unlink()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert advisor("run", "study/best-plan.yaml", "--out", "run").exit_code in (0, 1)
    again = advisor(*SEARCH, "--out", "study", "--json")
    assert again.exit_code in (0, 1)
    assert len(json.loads(again.stdout)["trials"]) == len(
        json.loads(before[folder / "study" / "pareto.json"])["trials"]
    )


# -- nothing is left behind ----------------------------------------------------------------------------------------

METRICS = """
def fails(outputs, labels):
    raise RuntimeError("no such thing")

def text(outputs, labels):
    return "very good"

def nan(outputs, labels):
    return float("nan")
"""


@pytest.mark.parametrize(("name", "word"), [("fails", "no such thing"), ("text", "failed"), ("nan", "returned nan")])
def test_a_metric_that_fails_leaves_no_folder(folder, monkeypatch, name, word):
    (folder / "bad_metric.py").write_text(METRICS)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "bad_metric", raising=False)
    refused(advisor(*SEARCH, "--metric", f"bad_metric:{name}", "--out", "study"), 2, f"metric: bad_metric:{name}", word)
    sys.modules.pop("bad_metric", None)
    nothing_written(folder, "bad_metric.py")


def test_data_without_labels_leave_no_folder(folder):
    np.savez("rows.npz", sequence=np.zeros((40, 8, 8), np.float32))
    shown = advisor(*SEARCH, "--eval-data", "rows.npz", "--out", "study")
    refused(shown, 2, "accuracy needs labels", "--task fidelity")
    nothing_written(folder, "rows.npz")


def test_a_bad_storage_leaves_no_folder(folder):
    refused(
        advisor(*SEARCH, "--storage", "sqlite:////no/such/place/s.db", "--out", "study"), 2, "storage: sqlite:////no"
    )
    refused(advisor(*SEARCH, "--storage", "nonsense://x", "--out", "study"), 2, "storage: nonsense://x")
    nothing_written(folder)


# -- a full disk ---------------------------------------------------------------------------------------------------


def can_mount():
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0


def on_a_small_disk(size, command, folder):
    """A command that writes into `small`, where little fits; and what is left there."""
    (folder / "small").mkdir()
    line = f"mount -t tmpfs -o size={size} none small && {command}; code=$?; ls -AR small; exit $code"
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", line],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )


@pytest.mark.skipif(not can_mount(), reason="a small disk needs a private mount")
@pytest.mark.parametrize("size", ["32k", "400k"])
def test_a_search_on_a_full_disk_keeps_nothing_half(folder, model, size):
    """Too small for the database, then for the copy of the uncompressed file (1.8 MB)."""
    data = texts("e.jsonl", GOOD)
    command = f"{sys.executable} {ROOT / 'cli.py'} search model --eval-data {data} --trials 1 --out small/study"
    ended = on_a_small_disk(size, command, folder)
    assert ended.returncode == 3, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert "the disk is full" in last
    assert "fault in advisor" not in ended.stderr
    left = set(ended.stdout.split())
    assert not left & {"model.onnx", "run.json", "report.html"}
    assert size != "32k" or not left & {"study", "study.db"}

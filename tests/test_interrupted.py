"""Commands that are cut short, by a full disk or by Ctrl-C: what is done is kept, and nothing is half-written."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typed import GOOD, ROOT, advisor, plan_file, refused, texts

pytestmark = pytest.mark.usefixtures("folder")


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
    [("run", "plan.yaml", "--out", "out"), ("search", "zoo:digits-lstm", "--training", "none", "--out", "out")],
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
        command = ("search", "zoo:digits-lstm", "--training", "none", "--trials", "1", "--out", "out")
    refused(advisor(*command), 3, full, "the disk is full")
    assert not (folder / "out" / full).exists()
    assert (folder / "out" / kept).exists()
    assert not [p for p in (folder / "out").rglob(".*")]


def test_interrupted_search_is_whole_and_goes_on(folder):
    """Ctrl-C in the middle of a study: 130, the study can be read, and the same command finishes it."""
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        "search",
        "zoo:digits-lstm",
        "--training",
        "none",
        "--out",
        "study",
    ]
    command += ["--trials", "6", "--threads", "1"]
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
    assert sum(t["state"] in ("complete", "pruned") for t in pareto["trials"]) >= 6

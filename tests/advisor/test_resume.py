"""A run killed in its third stage goes on there, and ends in the same bytes as one that was never interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from advisor.plans import save_plan
from knowledge.values import Budget, Drop, Plan, Stage, Workload

ROOT = Path(__file__).parents[2]
PLAN = Plan(
    model="zoo:digits-cnn",
    task="image-classification",
    target="server-cpu",
    workload=Workload(),
    budget=Budget(max_drop=Drop(amount=100, unit="pp")),
    stages=(
        Stage(technique="channels", params={"ratio": 0.7}),
        Stage(technique="finetune", params={"epochs": 1}),
        Stage(technique="magnitude", params={"ratio": 0.3}),
        Stage(technique="int8_static"),
    ),
)
# slows the third stage down, so that the kill finds it at work
KILLED_IN_THE_THIRD = """
import sys, time
import backends.prune.magnitude as magnitude
original = magnitude.apply
def slow(*arguments):
    open(sys.argv[3], "w").close()
    time.sleep(60)
    return original(*arguments)
magnitude.apply = slow
from pathlib import Path
from advisor.execute import run_plan
from advisor.plans import load_plan
run_plan(load_plan(Path(sys.argv[1])), Path(sys.argv[2]))
"""
UNDISTURBED = """
import sys
from pathlib import Path
from advisor.execute import run_plan
from advisor.plans import load_plan
run_plan(load_plan(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def start(code: str, cache: Path, *arguments: Path) -> subprocess.Popen:
    # the trained zoo models are shared; only the store of stages is this test's own
    environment = os.environ | {"ADVISOR_STORE": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    plan, marker = tmp_path / "plan.yaml", tmp_path / "third-stage"
    save_plan(PLAN, plan)
    killed = start(KILLED_IN_THE_THIRD, tmp_path / "store", plan, tmp_path / "run", marker)
    deadline = time.monotonic() + 120
    while not marker.exists():
        assert killed.poll() is None, "the run ended before its third stage"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "run" / "run.json").exists()

    assert start(UNDISTURBED, tmp_path / "store", plan, tmp_path / "run").wait() == 0
    stages = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]
    reused = {s["technique"]: s["reused"] for s in stages}
    assert reused == {"channels": True, "finetune": True, "magnitude": False, "export": False, "int8_static": False}

    assert start(UNDISTURBED, tmp_path / "other-store", plan, tmp_path / "other").wait() == 0
    resumed, straight = ((tmp_path / name / "artifact" / "model.onnx").read_bytes() for name in ("run", "other"))
    assert resumed == straight

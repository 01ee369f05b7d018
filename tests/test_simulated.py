"""Tests on simulated devices run in a process of their own, of which other tests see nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulated import ELSEWHERE, OWN_PROCESS

TESTS = Path(__file__).parent
FILES = ("backends/oneshot/test_devices.py", "backends/test_devices.py")


@pytest.mark.parametrize("file", FILES)
def test_what_runs_on_simulated_devices(file, pytestconfig):
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    chosen = " and ".join(f"({marks})" for marks in (pytestconfig.option.markexpr, "not gpu") if marks)
    command = [sys.executable, "-m", "pytest", "-m", chosen, "-rs", str(TESTS / file)]
    run = subprocess.run(command, env=keep | {OWN_PROCESS: "1"}, cwd=TESTS.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert ELSEWHERE not in run.stdout

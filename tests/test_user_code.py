"""The user's own code: nothing of a factory runs unasked, whatever names it."""

import sys
from pathlib import Path

import pytest
from typed import advisor, plan_file, refused

pytestmark = pytest.mark.usefixtures("folder")
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

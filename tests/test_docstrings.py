"""The examples in docstrings hold, in every module that has some."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for place in ("knowledge", "advisor", "backends", "benchmarks") for path in (ROOT / place).rglob("*.py")]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in FILES
    if ">>> " in path.read_text("utf-8")
]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_examples_hold(name):
    if name.startswith("backends.harness"):
        pytest.importorskip("lm_eval")
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed

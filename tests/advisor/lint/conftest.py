"""Linting without what other tests' runs have measured."""

import pytest
from linted import written

from advisor.lint import lint_plan


@pytest.fixture(autouse=True)
def no_evidence(tmp_path, monkeypatch):
    """What other tests' runs have measured does not enter."""
    monkeypatch.setenv("ADVISOR_CONFIG", str(tmp_path / "config"))


@pytest.fixture
def lint(tmp_path):
    """The findings about a plan."""
    return lambda raw, **options: lint_plan(written(tmp_path, raw), **options).findings

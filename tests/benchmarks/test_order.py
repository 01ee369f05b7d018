"""The comparison of one-shot methods, pair by pair."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def test_a_pair_is_told_apart_by_its_interval(monkeypatch, capsys):
    from benchmarks import order

    monkeypatch.setattr(order, "PAIRS", (("gptq-2-g64", "round-2-g64"),))
    asked = ["--models", "stdlib-gpt2", "--calibration", "16", "--windows", "16", "--json"]
    monkeypatch.setattr(sys, "argv", ["order", *asked])
    capsys.readouterr()
    order.main()
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["model"], row["first"], row["second"]) == ("stdlib-gpt2", "gptq-2-g64", "round-2-g64")
    assert 0 < row["low"] < row["below_percent"] < row["high"]
    assert row["perplexity"] > 10

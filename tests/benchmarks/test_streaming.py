"""The streaming benchmark as it is called, on narrow blocks."""

import json
import sys
from pathlib import Path

import pytest

from knowledge.values import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def streaming(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)  # the processes that compress import it from here
    from benchmarks import streaming

    monkeypatch.setattr(streaming, "HIDDEN", 64)
    monkeypatch.setattr(streaming, "INNER", 96)
    return streaming


def test_every_depth_gives_a_row(streaming, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["streaming", "--json", "--blocks", "2", "--setting", "wanda-50", "--tokens", "256"]
    )
    streaming.main()
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert set(row) == {"blocks", "seconds", "peak_memory_bytes"}
    assert row["blocks"] == 2
    assert row["seconds"] > 0
    assert 50e6 < row["peak_memory_bytes"] < 2e9
    assert "2 blocks, 4 MB of weights" in said.err


@pytest.mark.parametrize("arguments", [["--setting", "wanda"], ["--tokens", "9000"], ["--blocks", "8,few"]])
def test_what_is_not_understood_is_refused_before_anything_is_written(streaming, monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["streaming", *arguments])
    with pytest.raises((SystemExit, InputError)) as caught:
        streaming.main()
    assert arguments[1].split(",")[-1].replace("9000", "8,192") in str(caught.value) + capsys.readouterr().err

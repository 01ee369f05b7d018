"""The one-shot benchmark as it is called: a folder, token windows, settings."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backends.models import load
from backends.zoo.stdlib import token_windows
from knowledge.values import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def test_every_setting_gives_a_row(tmp_path, monkeypatch, capsys):
    from benchmarks.one_shot import main

    load("zoo:stdlib-gpt2").module.save_pretrained(tmp_path / "model")
    parts = ("calibration", "search")
    found = {part: torch.from_numpy(token_windows(part, 16, 0).inputs["input_ids"]).int() for part in parts}
    save_file(found, tmp_path / "data.safetensors")
    data = f"{tmp_path / 'data.safetensors'}:"
    settings = [
        "magnitude-60",
        "wanda-60",
        "sparsegpt-60",
        "wanda-2:4",
        "gptq-2-g64",
        "gptq-2-channel",
        "awq-2-g64",
        "round-2-g64",
    ]
    asked = ["--model", str(tmp_path / "model"), "--calibration", f"{data}calibration", "--eval", f"{data}search"]
    monkeypatch.setattr(sys, "argv", ["one_shot", *asked, "--settings", ",".join(settings), "--json"])
    capsys.readouterr()
    main()
    rows = json.loads(capsys.readouterr().out)
    assert [row["setting"] for row in rows] == ["dense", *settings]
    assert all(set(row) == {"setting", "perplexity", "seconds", "peak_memory_bytes"} for row in rows)
    lost = {row["setting"]: row["perplexity"] for row in rows}
    assert lost["dense"] < lost["sparsegpt-60"] < lost["wanda-60"] < lost["magnitude-60"]
    assert lost["dense"] < lost["gptq-2-g64"] < lost["awq-2-g64"] < lost["round-2-g64"]


@pytest.mark.parametrize("setting", ["wanda", "wanda-half", "gptq-4", "unknown-50"])
def test_a_setting_that_is_not_understood_is_named(setting):
    from benchmarks.one_shot import method_of

    with pytest.raises(InputError, match=f"settings: {setting}"):
        method_of(setting, {})

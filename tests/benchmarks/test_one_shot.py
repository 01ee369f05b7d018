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
    assert lost["dense"] < min(lost["gptq-2-g64"], lost["awq-2-g64"])
    assert max(lost["gptq-2-g64"], lost["awq-2-g64"]) < lost["round-2-g64"]


@pytest.mark.parametrize("setting", ["wanda", "wanda-half", "gptq-4", "unknown-50"])
def test_a_setting_that_is_not_understood_is_named(setting):
    from benchmarks.one_shot import method_of

    with pytest.raises(InputError, match=f"settings: {setting}"):
        method_of(setting, {})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("MambaConfig", ""),
        ("RwkvConfig", "model: RwkvForCausalLM: block 1 reads more of what the one before returns than hidden states"),
        ("ViTConfig", "is no causal language model"),
    ],
)
def test_models_beside_transformers_run_or_are_refused_in_one_line(tmp_path, monkeypatch, capsys, config, said):
    import transformers

    from benchmarks.one_shot import main

    made = getattr(transformers, config)(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    made.attention_hidden_size = made.hidden_size
    auto = transformers.AutoModel if config == "ViTConfig" else transformers.AutoModelForCausalLM
    auto.from_config(made).save_pretrained(tmp_path / "model")
    save_file({"ids": torch.randint(64, (9, 16)).int()}, tmp_path / "data.safetensors")
    data = f"{tmp_path / 'data.safetensors'}:ids"
    asked = ["--model", str(tmp_path / "model"), "--calibration", data, "--eval", data, "--settings", "wanda-50"]
    monkeypatch.setattr(sys, "argv", ["one_shot", *asked, "--json"])
    capsys.readouterr()
    if not said:
        main()
        assert [row["setting"] for row in json.loads(capsys.readouterr().out)] == ["dense", "wanda-50"]
        return
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert said in printed.err.splitlines()[-1]
    assert not printed.out

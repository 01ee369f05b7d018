"""A folder of a language model compressed block by block from the command line."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import cli

VOCABULARY = 300


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama") / "model"
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path, max_shard_size="100KB")
    return path


@pytest.fixture
def windows(folder):
    """Token windows in three files: enough of them, too few, and of another vocabulary."""
    rng = torch.Generator().manual_seed(0)
    held = {
        "enough": torch.randint(VOCABULARY, (16, 16), generator=rng).int(),
        "few": torch.randint(VOCABULARY, (2, 16), generator=rng).int(),
        "foreign": torch.full((16, 16), VOCABULARY).int(),
    }
    save_file(held, folder / "windows.safetensors")
    np.savez(folder / "windows.npz", input_ids=held["enough"].numpy())
    return "windows.safetensors:enough"


def asked(llama, windows, *more, out="out"):
    return ["compress", str(llama), "--calibration", windows, "--out", out, *more]


def weights(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def said(*arguments):
    """Exit status and what went to stderr."""
    result = CliRunner().invoke(cli.main, list(*arguments))
    return result.exit_code, result.stderr.strip()


def test_a_folder_becomes_another_of_which_half_is_zero(llama, windows, folder):
    result = CliRunner().invoke(cli.main, asked(llama, windows, "--technique", "sparsegpt", "--json"))
    found = json.loads(result.stdout)
    assert (found["schema"], found["blocks"], found["layers"]) == ("advisor.compress/1", 2, 14)
    assert found["warnings"] == []
    up = weights(folder / "out")["model.layers.1.mlp.up_proj.weight"]
    assert float((up == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    again = CliRunner().invoke(cli.main, asked(llama, "windows.npz", "--technique", "sparsegpt", "--json"))
    assert json.loads(again.stdout)["resumed_at"] == 2
    assert LlamaForCausalLM.from_pretrained(folder / "out").num_parameters() > 0


def test_what_gptq_leaves_is_told(llama, windows, folder):
    chosen = ["--technique", "gptq", "--set", "group_size=32", "--set", "bits=3"]
    result = CliRunner().invoke(cli.main, asked(llama, windows, *chosen))
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert "gptq: out" in words
    assert "the folder is as large as before; embeddings and head stay" in words
    up = weights(folder / "out")["model.layers.0.mlp.up_proj.weight"]
    assert len(up[0, :32].unique()) <= 8


@pytest.mark.parametrize(
    ("options", "calibration", "words"),
    [
        (
            ["--technique", "magnitude"],
            None,
            "technique: magnitude: does not work block by block; use wanda, sparsegpt",
        ),
        (["--technique", "wandas"], None, "technique: wandas: unknown technique"),
        (["--technique", "wanda", "--set", "ratio"], None, "set: ratio: sets nothing; write parameter=value"),
        (["--technique", "wanda", "--set", "ratio=2"], None, "set.wanda.ratio: 2"),
        (["--technique", "wanda", "--set", "allocation=outliers"], None, "looks at the whole model"),
        (["--technique", "sparsegpt", "--set", "bits=4"], None, "sparsegpt.bits: 4: rounding at the same time"),
        (["--technique", "wanda"], "none.npz", "calibration: none.npz: no such file"),
        (["--technique", "wanda"], "windows.safetensors:other", "has no tensor 'other'; it has enough, few, foreign"),
        (["--technique", "wanda"], "windows.safetensors:foreign", "token 300: vocabulary mismatch"),
        (["--technique", "sparsegpt"], "windows.safetensors:few", "32 tokens are too few"),
    ],
)
def test_bad_input_is_one_line(options, calibration, words, llama, windows):
    code, line = said(asked(llama, calibration or windows, *options))
    assert (code, line.splitlines()[-1].startswith("advisor: ")) == (2, True)
    assert words in line


def test_a_missing_shard_and_a_folder_in_use_are_named(llama, windows, folder):
    shutil.copytree(llama, folder / "model")
    missing = sorted((folder / "model").glob("*.safetensors"))[1]
    missing.unlink()
    assert missing.name in said(asked(folder / "model", windows, "--technique", "wanda"))[1]
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("")
    code, line = said(asked(llama, windows, "--technique", "wanda", out="full"))
    assert (code, "is not empty, and no compression was begun there" in line) == (2, True)


def test_a_text_needs_a_tokenizer(llama, windows, folder):
    (folder / "text.txt").write_text("some words")
    code, line = said(asked(llama, "text.txt", "--technique", "wanda"))
    assert (code, "has no tokenizer to read a text with; give token windows instead" in line) == (2, True)

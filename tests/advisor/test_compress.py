"""A folder of a language model compressed block by block from the command line."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

import cli
from advisor.compress import compress

VOCABULARY = 300
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 90, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama") / "model"
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(path, max_shard_size="100KB")
    return path


@pytest.fixture
def windows(folder):
    """Token windows in three files: enough of them, too few, and of another vocabulary."""
    rng = torch.Generator().manual_seed(0)
    held = {
        "enough": torch.randint(VOCABULARY, (16, 16), generator=rng).int(),
        "few": torch.randint(VOCABULARY, (2, 16), generator=rng).int(),
        "floats": torch.rand(16, 16, generator=rng),
        "foreign": torch.full((16, 16), VOCABULARY).int(),
    }
    save_file(held, folder / "windows.safetensors")
    np.savez(folder / "windows.npz", input_ids=held["enough"].numpy().astype(np.uint16))
    np.savez(folder / "unnamed.npz", held["enough"].numpy())
    (folder / "broken.npz").write_bytes(b"PK\x03\x04, and no more")
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
    assert (found["warnings"], found["bits"]) == ([], 32)
    held = [w for name, w in weights(folder / "out").items() if name.endswith("_proj.weight")]
    zeros = sum(int((w == 0).sum()) for w in held) / sum(w.numel() for w in held)
    assert found["zeros"] == zeros == pytest.approx(0.5, abs=0.01)
    again = CliRunner().invoke(cli.main, asked(llama, "windows.npz", "--technique", "sparsegpt", "--json"))
    assert json.loads(again.stdout)["resumed_at"] == 2
    assert LlamaForCausalLM.from_pretrained(folder / "out").num_parameters() > 0


def test_a_run_that_was_cut_off_goes_on_and_says_so(llama, windows, folder):
    def cut_off(line):
        if line == "block 1 of 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(llama, "sparsegpt", ["ratio=0.6"], windows, folder / "out", None, cut_off)
    assert not (folder / "out" / "model.safetensors.index.json").exists()
    chosen = ["--technique", "sparsegpt", "--set", "ratio=0.6", "--json"]
    result = CliRunner().invoke(cli.main, asked(llama, windows, *chosen))
    assert "goes on after block 1 of 2" in result.stderr
    found = json.loads(result.stdout)
    assert (found["resumed_at"], found["layers"]) == (1, 14)
    CliRunner().invoke(cli.main, asked(llama, windows, *chosen, out="whole"))
    whole = weights(folder / "whole")
    assert all(torch.equal(w, whole[name]) for name, w in weights(folder / "out").items())


def test_experts_that_read_few_tokens_are_told(windows, folder):
    config = MixtralConfig(**SIZES, num_local_experts=16, num_experts_per_tok=1)
    MixtralForCausalLM(config).save_pretrained(folder / "moe")
    result = CliRunner().invoke(cli.main, asked(folder / "moe", windows, "--technique", "sparsegpt", "--json"))
    warned = json.loads(result.stdout)["warnings"]
    told = [line for line in warned if "fewer than its" in line or "read no token" in line]
    assert len(told) == 4
    assert all("mlp.experts." in line for line in told)


def test_what_gptq_leaves_is_told(llama, windows, folder):
    chosen = ["--technique", "gptq", "--set", "group_size=32", "--set", "bits=3"]
    result = CliRunner().invoke(cli.main, asked(llama, windows, *chosen))
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert "gptq: out" in words
    assert "of these 12 layers in 4 bits" in words
    assert (
        "load with transformers' AutoModelForCausalLM.from_pretrained('out') with the library compressed-tensors"
        in words
    )
    assert "Embeddings and head stay as they are: embedding_bits" in words
    left = "Rounded, and left in floats: model.layers.0.mlp.down_proj (and 1 more) has 90 inputs, of which groups of 32"
    assert left in words
    assert "Codes of 3 bits are stored in 4" in words
    assert "narrower" not in words
    result = CliRunner().invoke(cli.main, asked(llama, windows, *chosen, "--format", "dense"))
    assert "starts afresh: the format changed" in result.stderr
    assert "Weights lie on their grids as floats, so the folder is as large as before." in " ".join(
        result.stdout.split()
    )
    up = weights(folder / "out")["model.layers.0.mlp.up_proj.weight"]
    assert len(up[0, :32].unique()) <= 8


@pytest.mark.parametrize(
    ("technique", "form", "packed"),
    [("gptq", "pack-quantized", {"bits": 4, "group_size": 0, "symmetric": False}), ("wanda", "without-zeros", None)],
)
def test_a_smaller_folder_is_told_in_bytes_and_unpacked(technique, form, packed, llama, windows, folder):
    chosen = ["--technique", technique, "--format", "packed", "--json"]
    found = json.loads(CliRunner().invoke(cli.main, asked(llama, windows, *chosen)).stdout)
    held = sum(tensor.nbytes for tensor in weights(folder / "out").values())
    before = sum(tensor.nbytes for tensor in weights(llama).values())
    assert (found["format"], found["bytes_before"], found["bytes_after"]) == (form, before, held)
    assert (found["packed"]["layers"], found["packed"]["scheme"]) == (14, packed)
    saved = found["packed"]["bytes_before"] - found["packed"]["bytes_after"]
    assert before - held >= saved > 0.2 * found["packed"]["bytes_before"]
    code, line = said(["inspect", "out"])
    assert code == 2
    if packed:
        assert "is quantized already; give the model that it was made from, or what `advisor unpack` makes" in line
    result = CliRunner().invoke(cli.main, ["unpack", "out", "--out", "plain", "--json"])
    made = json.loads(result.stdout)
    assert (made["schema"], made["format"]) == ("advisor.unpack/1", form)
    assert weights(folder / "plain").keys() == weights(llama).keys()
    assert LlamaForCausalLM.from_pretrained(folder / "plain").num_parameters() > 0
    assert "unpacked" in CliRunner().invoke(cli.main, ["unpack", "out", "--out", "again"]).stdout


@pytest.mark.parametrize(
    ("options", "calibration", "words"),
    [
        (
            ["--technique", "magnitude"],
            None,
            "technique: magnitude: does not work block by block; use wanda, sparsegpt",
        ),
        (["--technique", "wandas"], None, "technique: wandas: unknown technique"),
        (["--technique", "gptq", "--format", "onnx"], None, "Invalid value for '--format': 'onnx' is not one of"),
        (["--technique", "wanda", "--set", "ratio"], None, "set: ratio: sets nothing; write parameter=value"),
        (["--technique", "wanda", "--set", f"ratio={'[' * 200_000}"], None, "sets nothing; write parameter=value"),
        (["--technique", "wanda", "--set", "ratio=2"], None, "set.wanda.ratio: 2"),
        (["--technique", "wanda", "--set", "allocation=outliers"], None, "looks at the whole model"),
        (["--technique", "wanda", "--set", "max_loss=0.1"], None, "is measured on the whole model"),
        (["--technique", "sparsegpt", "--set", "bits=4"], None, "sparsegpt.bits: 4: rounding at the same time"),
        (["--technique", "gptq", "--set", "include_experts=false"], None, "blocks are compressed as a whole; leave it"),
        (
            ["--technique", "sparsegpt", "--set", "pattern=4:8"],
            None,
            "down_proj has 90 inputs, which make no whole groups",
        ),
        (
            ["--technique", "wanda", "--set", "pattern=4:8", "--set", "layer_ratios={layers.0: 0.3}"],
            None,
            "wanda: pattern 4:8 and ratios by layer: each sets the ratio of every layer",
        ),
        (["--technique", "wanda"], "none.npz", "calibration: none.npz: no such file"),
        (["--technique", "wanda"], "broken.npz", "calibration: broken.npz: is no .npz archive"),
        (["--technique", "wanda"], "unnamed.npz", "has no array 'input_ids'; it has arr_0"),
        (["--technique", "wanda"], "windows.safetensors", "names no tensor; write windows.safetensors:KEY"),
        (["--technique", "wanda"], "windows.safetensors:floats", "holds float32, no tokens"),
        (["--technique", "wanda"], "windows.safetensors:other", "has no tensor 'other'; write windows.safetensors:KEY"),
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


def test_a_text_is_cut_into_windows_that_the_model_reads(llama, folder):
    shutil.copytree(llama, folder / "model")
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "some": 1, "words": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder / "model")
    (folder / "text.txt").write_text("some words " * 100)
    result = CliRunner().invoke(cli.main, asked(folder / "model", "text.txt", "--technique", "wanda", "--json"))
    assert json.loads(result.stdout)["calibration_tokens"] == 3 * 64
    assert (folder / "out" / "tokenizer.json").is_file()
    longer = asked(folder / "model", "text.txt", "--technique", "wanda", "--seq-len", "100", out="other")
    assert "windows are longer than the 64 tokens that the model reads" in said(longer)[1]

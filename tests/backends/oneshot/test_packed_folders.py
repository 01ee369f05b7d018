"""Folders that a streamed compression packed: the same numbers as plain ones, from where they were killed too."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from backends.oneshot.fold import find_folds
from backends.oneshot.forms import PACKED_INDEX
from backends.oneshot.matrices import matrices
from backends.oneshot.methods import awq_method, gptq_method, wanda_method
from backends.oneshot.progress import PROGRESS
from backends.oneshot.stream import compress_folder
from backends.oneshot.unpack import unpack_folder
from knowledge.shards import INDEX
from knowledge.values import InputError

CPU = torch.device("cpu")
MAKERS = {
    "gptq": lambda readers: gptq_method(4, 32, symmetric=False),
    "gptq 3 symmetric reordered": lambda readers: gptq_method(3, 32, symmetric=True, reorder=True),
    "gptq 8 by row": lambda readers: gptq_method(8, 0, symmetric=False),
    "gptq 4 symmetric": lambda readers: gptq_method(4, 32, symmetric=True),
    "awq": lambda readers: awq_method(4, 32, False, 4, True, readers),
    "wanda": lambda readers: wanda_method(lambda path: 0.0, (2, 4)),
}


@pytest.fixture
def ids():
    return torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def source(small, tmp_path):
    """A maker of folders in several shards, 64 wide. (Norms of trained models are no ones.)"""

    def make(kind="llama", dtype=torch.float32, **sizes):
        module = small.transformer(kind, hidden=64, **{"ffn": 64, "blocks": 2} | sizes).module
        norms = (one for name, one in module.named_parameters() if "norm" in name and one.dim() == 1)
        for one in norms:
            nn.init.uniform_(one, 0.3, 2)
        module.to(dtype).save_pretrained(tmp_path / "source", max_shard_size="60KB")
        return tmp_path / "source"

    return make


def stream(source, out, tokens, name, form, **more):
    return compress_folder(source, out, tokens, MAKERS[name], name, form=form, devices=[CPU], at_once=8, **more)


def tensors(folder):
    return {name: one for path in folder.glob("*.safetensors") for name, one in load_file(path).items()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != PROGRESS}


def logits(folder, ids):
    module = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return module.eval()(input_ids=ids).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "awq"])
def test_unpacked_weights_are_those_of_a_plain_folder_bit_for_bit(name, dtype, source, tmp_path, ids):
    folder = source(dtype=dtype)
    plain = stream(folder, tmp_path / "plain", ids, name, "dense")
    packed = stream(folder, tmp_path / "packed", ids, name, "packed")
    assert (plain.form, packed.form) == ("dense", "without-zeros" if name == "wanda" else "pack-quantized")
    assert packed.bytes_after < plain.bytes_after == plain.bytes_before == packed.bytes_before
    assert sum(layer.zeros for layer in packed.layers) == sum(layer.zeros for layer in plain.layers)
    changed = sum(layer.bytes_before - layer.bytes_after for layer in packed.layers)
    if name != "wanda":  # which leaves zeros out wherever they are
        assert packed.bytes_before - packed.bytes_after == changed
        assert len(packed.layers) == sum(layer.scheme is not None for layer in packed.layers) == 14
    unpack_folder(tmp_path / "packed", tmp_path / "unpacked")
    expected, found = tensors(tmp_path / "plain"), tensors(tmp_path / "unpacked")
    assert found.keys() == expected.keys()
    for key, one in found.items():
        assert one.dtype == dtype
        assert torch.equal(one, expected[key]), key
    assert torch.equal(logits(tmp_path / "unpacked", ids), logits(tmp_path / "plain", ids))


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
@pytest.mark.parametrize("name", ["gptq", "gptq 4 symmetric", "gptq 3 symmetric reordered", "gptq 8 by row"])
def test_transformers_loads_the_same_model(kind, name, source, tmp_path, ids):
    pytest.importorskip("compressed_tensors")
    folder = source(kind, torch.bfloat16)
    if kind == "mixtral" and "symmetric" not in name:
        with pytest.raises(
            InputError, match=r"holds experts with zero points, .*: set symmetric=true; use --format dense"
        ):
            stream(folder, tmp_path / "packed", ids, name, "packed")
        return
    stream(folder, tmp_path / "plain", ids, name, "dense")
    stream(folder, tmp_path / "packed", ids, name, "packed")
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(tmp_path / "packed", ids), logits(tmp_path / "plain", ids))


def test_a_killed_run_goes_on_to_the_same_bytes_and_another_format_starts_afresh(source, tmp_path, ids):
    def kill(line):
        if line.startswith("block 1 "):
            os.kill(os.getpid(), signal.SIGKILL)

    folder, out = source(), tmp_path / "out"
    stream(folder, tmp_path / "whole", ids, "awq", "packed")
    child = os.fork()
    if not child:
        stream(folder, out, ids, "awq", "packed", tell=kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (out / INDEX).exists()
    assert stream(folder, out, ids, "awq", "packed").resumed_at == 1
    assert contents(out) == contents(tmp_path / "whole")
    assert stream(folder, out, ids, "awq", "dense").afresh == "the format changed"
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    stream(folder, tmp_path / "plain", ids, "awq", "dense")
    assert contents(out) == contents(tmp_path / "plain")


def test_a_norm_takes_what_awq_divides_by(source, tmp_path, ids):
    def fine(readers):
        return awq_method(8, 16, False, 4, False, readers)

    folder = source()
    found = compress_folder(folder, tmp_path / "packed", ids, fine, "fine", form="packed", devices=[CPU])
    scaled = {layer.path for layer in found.layers if layer.scaled}
    assert {path.rpartition(".")[2] for path in scaled} >= {"q_proj", "k_proj", "v_proj"}
    unpack_folder(tmp_path / "packed", tmp_path / "unpacked")
    before, after = tensors(folder), tensors(tmp_path / "unpacked")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {f"{layer.path}.weight" for layer in found.layers}
    assert {name for name in moved - layers if not name.endswith("layernorm.weight")} == set()
    for path in scaled:
        block = path.rpartition(".")[0]
        norm = "post_attention_layernorm" if "mlp" in path else "input_layernorm"
        norm = f"{block.rpartition('.')[0]}.{norm}.weight"
        assert norm in moved
        held, was = after[f"{path}.weight"] * after[norm], before[f"{path}.weight"] * before[norm]
        assert (held - was).norm() < 0.01 * was.norm()
        assert (after[f"{path}.weight"] - before[f"{path}.weight"]).norm() > 0.1 * before[f"{path}.weight"].norm()


class OnePlus(nn.LayerNorm):
    """A norm that multiplies by 1 + its weight."""

    def forward(self, x):
        return nn.functional.layer_norm(x, (16,), 1 + self.weight, self.bias)


class Block(nn.Module):
    """A norm that one layer reads, or another too."""

    def __init__(self, norm, shared):
        super().__init__()
        self.norm, self.first, self.second = norm(16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.shared = shared
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        y = self.norm(x)
        return x + torch.tanh(self.first(y)) + self.second(y if self.shared else x)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("norm", [nn.LayerNorm, OnePlus])
def test_only_a_norm_that_nothing_else_reads_is_divided(norm, shared):
    torch.manual_seed(0)
    block, x = Block(norm, shared), torch.randn(2, 5, 16)
    before, outputs = {name: one.clone() for name, one in block.state_dict().items()}, block(x)
    found = [one for path in ("first", "second") for one in matrices(block, path)]
    folds = find_folds(block, "block", lambda: block(x), found, {}, lambda name: torch.bfloat16)
    assert ("first" in folds) is not shared
    assert "second" not in folds
    assert all(torch.equal(one, before[name]) for name, one in block.state_dict().items())
    if not shared:
        factors = folds.nearest("first", torch.rand(16) + 0.5)
        divided = folds.divided({"first": factors})
        assert {one.dtype for one in divided.values()} == {torch.bfloat16}
        gain = before["norm.weight"] + (norm is OnePlus)
        held = divided["block.norm.weight"].float() + (norm is OnePlus)
        torch.testing.assert_close(held * factors, gain, atol=0, rtol=1e-6)  # exact, though of 16 bits
        with torch.no_grad():
            for name, value in divided.items():
                block.get_parameter(name.removeprefix("block.")).copy_(value.float())
            block.first.weight.mul_(factors)
        torch.testing.assert_close(block(x), outputs, atol=0.05, rtol=0)  # its bias is rounded


def test_what_the_format_does_not_hold_stays_in_floats_or_is_refused(source, tmp_path, ids):
    folder = source(ffn=90)
    found = stream(folder, tmp_path / "packed", ids, "gptq", "packed")
    left = {layer.path: layer.left for layer in found.layers if layer.left}
    assert left == {
        f"model.layers.{n}.mlp.down_proj": "has 90 inputs, of which groups of 32 leave a short one" for n in range(2)
    }
    described = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert described["ignore"] == ["lm_head", r"re:model\.layers\.\d+\.mlp\.down_proj$"]
    assert described["config_groups"]["group_0"]["weights"]["group_size"] == 32
    for kind, why in (("gpt2", "is a Conv1D"), ("mixtral", "holds experts with zero points")):
        folder = source(kind)
        with pytest.raises(InputError, match=f"format: packed: .* {why}.*; use --format dense"):
            stream(folder, tmp_path / kind, ids, "gptq", "packed")
        found = stream(folder, tmp_path / f"{kind}-auto", ids, "gptq", "auto")
        assert (found.form, why in found.not_packed) == ("dense", True)


def test_a_folder_without_zeros_is_taken_for_no_model(source, tmp_path, ids):
    stream(source(), tmp_path / "packed", ids, "wanda", "packed")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    index = json.loads((tmp_path / "packed" / PACKED_INDEX).read_text())
    kept = {path.name for path in (tmp_path / "packed").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == kept


def test_what_cannot_be_unpacked_is_refused(source, tmp_path, ids):
    folder = source()
    with pytest.raises(InputError, match="holds no packed weights; it can be used as it is"):
        unpack_folder(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    stream(folder, tmp_path / "packed", ids, "gptq", "packed")
    with pytest.raises(InputError, match="is not empty"):
        unpack_folder(tmp_path / "packed", folder)
    (shard,) = (tmp_path / "packed").glob("model-00001-*")
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"unreadable: .*; copy or download it again"):
        unpack_folder(tmp_path / "packed", tmp_path / "new")
    shard.unlink()
    with pytest.raises(InputError, match=f"has no {shard.name}"):
        unpack_folder(tmp_path / "packed", tmp_path / "new")

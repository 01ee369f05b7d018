"""What enters blocks, whatever they return: families whose blocks return tuples, and models refused by name."""

from functools import partial
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn

from backends.blocks import find_blocks
from backends.oneshot.blocks import enter, gone
from backends.oneshot.matrices import layer_paths, matrices
from backends.oneshot.methods import wanda_method
from backends.oneshot.parts import Parts
from backends.oneshot.stream import compress_folder
from knowledge.values import InputError

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
SMALL = {"vocab_size": 64, "hidden_size": 32, "use_cache": False}
DEEP = SMALL | {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
TUPLES = {  # what a block returns, and how the model takes it
    "bloom": lambda: hf.BloomConfig(**SMALL, n_layer=3, n_head=4),  # output[0] of two
    "gptj": lambda: hf.GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, rotary_dim=4),
    "falcon": lambda: hf.FalconConfig(**SMALL, num_hidden_layers=3, num_attention_heads=4, alibi=True),
    "openai-gpt": lambda: hf.OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4),  # output[0] of one
    "bamba": lambda: hf.BambaConfig(  # unpacked
        **DEEP, num_key_value_heads=2, attn_layer_indices=[0, 1, 2], mamba_n_heads=4, mamba_d_head=16
    ),
}
JAMBA = DEEP | {"num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4}


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(0))


def causal(config):
    torch.manual_seed(0)
    module = hf.AutoModelForCausalLM.from_config(config).eval()
    for weight in module.parameters():  # the library's own start is so small that blocks look idle
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.15)
    return module


@torch.no_grad()
def passed(module, run):
    """What leaves the last block, by the entry's calls and by the model itself."""
    _, blocks = find_blocks(module, mixed=True)
    entry, seen = enter(module, run), []
    hook = blocks[-1].register_forward_hook(lambda block, args, output: seen.append(output))
    run()
    hook.remove()
    for number, block in enumerate(blocks):
        entry.hidden = entry.through(block, number)
    return entry.hidden, seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]


@pytest.mark.parametrize("kind", TUPLES)
def test_blocks_that_return_tuples_pass_on_what_the_model_passes_on(ids, kind):
    module = causal(TUPLES[kind]())
    by_calls, by_model = passed(module, partial(module, input_ids=ids, use_cache=False))
    assert torch.equal(by_calls, by_model)


def test_a_family_of_tuples_is_streamed_to_what_memory_gives(tmp_path, ids, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.one_shot import run

    module = causal(TUPLES["bloom"]())
    module.save_pretrained(tmp_path / "source")
    compress_folder(
        tmp_path / "source", tmp_path / "out", ids, lambda readers: wanda_method(lambda path: 0.5), "w", devices=[CPU]
    )
    run(module, ids, "wanda-50")
    module.save_pretrained(tmp_path / "expected")
    expected = load_file(tmp_path / "expected" / "model.safetensors")
    found = {name: one for path in (tmp_path / "out").glob("*.safetensors") for name, one in load_file(path).items()}
    assert found.keys() == expected.keys()
    for name, one in found.items():
        torch.testing.assert_close(one, expected[name], atol=1e-6, rtol=1e-6, msg=name)
        if "mlp" in name and name.endswith(".weight") and one.dim() == 2:
            assert float((one == 0).float().mean()) == 0.5


def test_blocks_of_several_types_with_a_common_base_are_blocks(ids):
    module = causal(hf.JambaConfig(**JAMBA, use_mamba_kernels=False, mamba_d_state=4, mamba_dt_rank=4))
    path, blocks = find_blocks(module, mixed=True)
    assert (path, len(blocks), len({type(block) for block in blocks})) == ("model.layers", 3, 2)
    by_calls, by_model = passed(module, partial(module, input_ids=ids, use_cache=False))
    assert torch.equal(by_calls, by_model)
    mixed = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.TransformerEncoderLayer(2, 1)])
    with pytest.raises(InputError, match="no list of repeated blocks"):
        find_blocks(nn.ModuleDict({"parts": mixed}), mixed=True)
    with pytest.raises(InputError, match="no list of repeated blocks"):  # to remove some takes blocks of one type
        find_blocks(module)


class Stack(nn.Module):
    """Three blocks, called as `order` says, with `between` after each."""

    def __init__(self, order=(0, 1, 2), between=lambda x: x):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        self.order, self.between = order, between

    def forward(self, x):
        for number in self.order:
            x = self.between(self.blocks[number](x))
        return x


@pytest.mark.parametrize(
    ("stack", "why"),
    [
        (Stack(between=lambda x: x / 2), "block 1 reads something else than what the one before returns"),
        (Stack(between=lambda x: x[:, :2]), "block 1 reads something else"),
        (Stack(order=(0, 1, 1, 2)), "block 1 is called again"),
        (Stack(order=(1, 0, 2)), "out of turn"),
        (Stack(order=(0, 1)), "2 are called"),
        (Stack(between=lambda x: x.no_such_name), "no_such_name"),
    ],
)
def test_what_does_not_pass_from_block_to_block_is_refused_by_name(stack, why):
    before = list(stack.blocks)
    with pytest.raises(InputError, match=f"Stack: hidden states do not pass its blocks .*{why}") as caught:
        enter(stack, lambda: stack(torch.randn(2, 3, 4)))
    assert "\n" not in str(caught.value)
    assert list(stack.blocks) == before


def test_a_copy_between_blocks_is_no_change():
    stack = Stack(between=torch.clone)
    x = torch.randn(2, 3, 4)
    assert torch.equal(enter(stack, lambda: stack(x)).hidden, x)


def test_a_block_that_reads_more_than_hidden_states_is_refused_by_what_it_reads(ids):
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
    module = hf.T5EncoderModel(hf.T5Config(**sizes)).eval()
    with pytest.raises(InputError, match=r"T5EncoderModel: block 1 reads more of .* hidden states: position_bias"):
        enter(module, lambda: module(input_ids=ids))


def test_experts_that_only_their_module_can_compute_are_refused_by_name():
    sizes = DEEP | {"num_key_value_heads": 2, "intermediate_size_mlp": 64, "num_local_experts": 4}
    with torch.device("meta"):
        module = hf.AutoModelForCausalLM.from_config(hf.Llama4TextConfig(**sizes))
    path, blocks = find_blocks(module)
    experts = [one for one in layer_paths(blocks, path) if "experts" in one]
    assert experts[0] == "model.layers.0.feed_forward.experts.gate_up_proj"
    with pytest.raises(InputError, match=r"layers\.0\.feed_forward\.experts\.gate_up_proj: is a stack of experts that"):
        matrices(module, experts[0])


def test_convolutions_and_routers_of_blocks_are_no_layers_to_change():
    with torch.device("meta"):
        module = hf.AutoModelForCausalLM.from_config(hf.MambaConfig(**SMALL, num_hidden_layers=2))
    path, blocks = find_blocks(module)
    assert {one.rpartition(".")[2] for one in layer_paths(blocks, path)} == {"in_proj", "x_proj", "dt_proj", "out_proj"}
    routed = nn.ModuleList([nn.ModuleDict({"mlp": nn.ModuleDict({"gate": nn.Linear(8, 2), "up": nn.Linear(8, 8)})})])
    assert layer_paths(routed, "layers") == ["layers.0.mlp.up"]


def test_keys_and_values_that_later_blocks_read_are_gone_after_a_kill():
    sizes = {"num_hidden_layers": 10, "num_kv_shared_layers": 4, "intermediate_size": 64, "head_dim": 8}
    narrow = {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    with torch.device("meta"):
        config = hf.Gemma3nTextConfig(**(SMALL | sizes | narrow), num_attention_heads=4, num_key_value_heads=2)
        _, blocks = find_blocks(hf.AutoModelForCausalLM.from_config(config))
    assert [bool(gone(blocks, done)) for done in (0, 3, 6, 9, 10)] == [False, False, True, True, False]


def test_buffers_that_the_model_computes_for_its_blocks_are_what_loading_gives(tmp_path):
    sizes = DEEP | {"num_key_value_heads": 2, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16}
    config = hf.FalconH1Config(**sizes, mamba_d_state=8, ssm_multipliers=[0.5, 0.25, 2.0, 4.0, 8.0])
    module = causal(config)
    module.save_pretrained(tmp_path)
    parts = Parts(tmp_path, [CPU])
    parts.fill(1, {name: parts.shards.read(name) for name in parts.names[1]})
    found = dict(parts.blocks[1].named_buffers())
    assert any("mup_vector" in name for name in found)
    for name, one in module.model.layers[1].named_buffers():
        assert torch.equal(found[name], one), name

"""Experts one after the other: each is rounded by the tokens that are sent to it, in memory and from shards."""

import copy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from backends.blocks import find_blocks
from backends.models import load
from backends.oneshot.blocks import enter
from backends.oneshot.engine import chosen_matrices, compress
from backends.oneshot.methods import awq_method, gptq_method, rounding_method
from backends.oneshot.statistics import Inputs
from backends.oneshot.stream import compress_folder
from backends.quantize.awq import awq, channel_factors
from backends.quantize.gptq import gptq
from backends.zoo.stdlib import token_windows

FORM = 3, 16, False


@pytest.fixture
def ids():
    return torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mixtral(small):
    """Two blocks of four experts, 32 wide."""
    return small.transformer("mixtral", blocks=2).module


def experts_of(module):
    path, blocks = find_blocks(module)
    return [f"{path}.{name}" for name, one in blocks.named_parameters() if one.dim() == 3]


def compressed(module, method, batches, masks=(None,)):
    """A copy of the model with its experts changed, and what was done."""
    changed = copy.deepcopy(module)
    path, blocks = find_blocks(changed)
    entries = [enter(changed, partial(changed, input_ids=part, use_cache=False)) for part in batches]
    for entry, mask in zip(entries, masks, strict=True):
        entry.mask = mask
    chosen = chosen_matrices(changed, path, experts_of(changed))
    return changed, list(compress(list(blocks), entries, chosen, method, changed.config))


@torch.no_grad()
def routed(module, ids, mask=None):
    """What each expert of the first block reads before anything is changed."""
    block, seen = module.model.layers[0].mlp, []
    handle = block.register_forward_pre_hook(lambda part, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    module(input_ids=ids, use_cache=False)
    handle.remove()
    chosen = block.gate(seen[0])[2]
    kept = torch.ones(ids.numel(), dtype=torch.bool) if mask is None else mask.flatten()
    return [seen[0][(chosen == expert).any(1) & kept] for expert in range(block.experts.num_experts)]


def summed(x):
    read = Inputs(x.shape[1])
    read.add(x, gram=True)
    return read


def inner(experts, expert, x):
    gate, up = F.linear(x, experts.gate_up_proj[expert]).chunk(2, -1)
    return experts.act_fn(gate) * up


@pytest.mark.parametrize("batches", [1, 2])
def test_gptq_rounds_every_expert_by_the_hessian_of_its_own_tokens(mixtral, ids, batches):
    changed, done = compressed(mixtral, gptq_method(*FORM), ids.chunk(batches), [None] * batches)
    before, after = (module.model.layers[0].mlp.experts for module in (mixtral, changed))
    told = {(one.matrix.path, one.matrix.expert): one.tokens for one in done}
    for expert, x in enumerate(routed(mixtral, ids)):
        up, *_ = gptq(before.gate_up_proj[expert].detach(), summed(x), *FORM, 0.01)
        torch.testing.assert_close(after.gate_up_proj[expert].detach(), up, atol=1e-5, rtol=1e-5)
        read = summed(inner(after if batches == 1 else before, expert, x).detach())
        down, *_ = gptq(before.down_proj[expert].detach(), read, *FORM, 0.01)
        torch.testing.assert_close(after.down_proj[expert].detach(), down, atol=1e-5, rtol=1e-5)
        assert told["model.layers.0.mlp.experts.down_proj", expert] == len(x)


def test_padding_counts_for_no_expert(mixtral, ids):
    mask = torch.ones(ids.shape, dtype=torch.bool)
    mask[:, 12:] = False
    changed, done = compressed(mixtral, gptq_method(*FORM), [ids], [mask])
    reads = routed(mixtral, ids, mask)
    assert [one.tokens for one in done[:8:2]] == [len(x) for x in reads]
    up, *_ = gptq(mixtral.model.layers[0].mlp.experts.gate_up_proj[1].detach(), summed(reads[1]), *FORM, 0.01)
    torch.testing.assert_close(changed.model.layers[0].mlp.experts.gate_up_proj[1].detach(), up, atol=1e-5, rtol=1e-5)


def test_awq_scales_what_an_expert_can_divide_for_nothing(mixtral, ids):
    changed, done = compressed(mixtral, awq_method(*FORM, 20, True, {}), [ids])
    before, after = (module.model.layers[0].mlp.experts for module in (mixtral, changed))
    for one, x in zip(done[:8:2], routed(mixtral, ids), strict=True):
        assert one.factors.eq(1).all()  # the router reads the same
        expert = one.matrix.expert
        moment = summed(inner(after, expert, x).detach()).second_moment
        weight = before.down_proj[expert].detach()
        factors = channel_factors([weight], moment, *FORM, 20)
        down, *_ = awq(weight, factors, moment, *FORM, True)
        torch.testing.assert_close(after.down_proj[expert].detach(), down, atol=1e-5, rtol=1e-5)
    assert any(bool((one.factors != 1).any()) for one in done if one.matrix.path.endswith("down_proj"))


def test_experts_in_four_bits_lose_less_by_gptq_than_rounded_to_nearest():
    """With 512 tokens for each expert, four times its width, the two are about the same."""
    module = load("zoo:stdlib-moe").module
    read, judged = (
        torch.from_numpy(token_windows(part, count, 0).inputs["input_ids"])
        for part, count in (("calibration", 64), ("search", 12))
    )

    @torch.no_grad()
    def spoken(model):
        return F.log_softmax(model(input_ids=judged, use_cache=False).logits, -1)

    wanted = spoken(module)
    by_data, nearest = (
        (wanted.exp() * (wanted - spoken(compressed(module, method(4, 128, False), [read])[0]))).sum(-1).mean()
        for method in (gptq_method, rounding_method)
    )
    assert float(by_data) < 0.92 * float(nearest)


def test_streamed_experts_are_those_that_are_rounded_in_memory(mixtral, ids, tmp_path):
    mixtral.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    source, out, method = tmp_path / "source", tmp_path / "out", gptq_method(*FORM)
    done = compress_folder(source, out, ids, lambda readers: method, "gptq", devices=[torch.device("cpu")])
    changed = copy.deepcopy(mixtral)
    path, blocks = find_blocks(changed)
    paths = [layer.path for layer in done.layers]
    entry = enter(changed, partial(changed, input_ids=ids, use_cache=False))
    made = list(compress(list(blocks), [entry], chosen_matrices(changed, path, paths), method, changed.config))
    changed.save_pretrained(tmp_path / "expected")
    found, expected = (
        {name: one for file in (tmp_path / folder).glob("*.safetensors") for name, one in load_file(file).items()}
        for folder in ("out", "expected")
    )
    assert found.keys() == expected.keys()
    for name, one in found.items():
        torch.testing.assert_close(one, expected[name], atol=1e-5, rtol=1e-5, msg=name)
    fewest = {layer.path: layer.fewest_tokens for layer in done.layers}
    for name in experts_of(changed):
        assert fewest[name] == min(one.tokens for one in made if one.matrix.path == name)
    one = found["model.layers.0.block_sparse_moe.experts.0.w2.weight"]
    assert all(len(row.unique()) <= 8 for row in one[:, :16])

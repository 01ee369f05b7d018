"""Blocks compressed one after the other, on the zoo's trained language models."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from backends.blocks import find_blocks
from backends.layer_kinds import is_dense
from backends.models import load
from backends.oneshot.blocks import enter
from backends.oneshot.engine import chosen_matrices, compress
from backends.oneshot.matrices import watched
from backends.oneshot.methods import gptq_method, magnitude_method, rounding_method, sparsegpt_method, wanda_method
from backends.zoo.stdlib import token_windows
from knowledge.values import InputError

WINDOWS = {"calibration": 64, "search": 128}


@pytest.fixture(scope="module")
def zoo():
    return {name: load(f"zoo:{name}").module for name in ("stdlib-gpt2", "stdlib-lm", "stdlib-moe")}


@pytest.fixture(scope="module")
def ids():
    return {
        part: torch.from_numpy(token_windows(part, count, 0).inputs["input_ids"]) for part, count in WINDOWS.items()
    }


def compressed(module, method, calibration, batches=1):
    """A copy of the model, every matrix of its blocks changed."""
    changed = copy.deepcopy(module)
    path, blocks = find_blocks(changed)
    paths = [f"{path}.{name}" for name, part in blocks.named_modules() if is_dense(part)]
    paths += [f"{path}.{name}" for name, parameter in blocks.named_parameters() if parameter.dim() == 3]
    parts = calibration.split(len(calibration) // batches)
    entries = [enter(changed, partial(changed, input_ids=part, use_cache=False)) for part in parts]
    done = list(compress(list(blocks), entries, chosen_matrices(changed, path, paths), method, changed.config))
    return changed, done


@torch.no_grad()
def losses(module, windows):
    """Mean loss of each window. [windows]"""
    logits = module(input_ids=windows, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), windows[:, 1:], reduction="none").mean(1)


def surely_lower(first, second):
    """Whether the first losses are lower, paired over windows: the 95 % interval of the difference is below 0."""
    difference = first - second
    return float(difference.mean() + 1.96 * difference.std() / len(difference) ** 0.5) < 0


@pytest.mark.parametrize("pattern", [(0, 0), (2, 4)])
def test_the_published_order_of_pruning_methods_holds(zoo, ids, pattern):
    found = {}
    for name, method in (("sparsegpt", sparsegpt_method), ("wanda", wanda_method), ("magnitude", magnitude_method)):
        changed, _ = compressed(zoo["stdlib-gpt2"], method(lambda path: 0.6, pattern), ids["calibration"])
        found[name] = losses(changed, ids["search"])
    assert surely_lower(found["sparsegpt"], found["wanda"])
    assert float(found["wanda"].mean()) < float(found["magnitude"].mean())


@pytest.mark.parametrize("name", ["stdlib-lm", "stdlib-gpt2"])
def test_gptq_loses_less_than_rounding(zoo, ids, name):
    for bits in (3, 2):
        solved, _ = compressed(zoo[name], gptq_method(bits, 64, symmetric=False), ids["calibration"])
        rounded, _ = compressed(zoo[name], rounding_method(bits, 64, symmetric=False), ids["calibration"][:1])
        assert surely_lower(losses(solved, ids["search"]), losses(rounded, ids["search"]))


def test_several_batches_give_nearly_what_one_gives(zoo, ids):
    method = sparsegpt_method(lambda path: 0.5)
    changed = [compressed(zoo["stdlib-lm"], method, ids["calibration"], batches)[0] for batches in (1, 4)]
    whole, parts = (losses(module, ids["search"]) for module in changed)
    assert float(whole.mean()) == pytest.approx(float(parts.mean()), rel=0.01)


def test_the_same_data_give_the_same_weights(zoo, ids):
    first, second = (compressed(zoo["stdlib-lm"], gptq_method(4, 32, False), ids["calibration"][:16])[0] for _ in "ab")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_watching_changes_no_output_and_sees_every_expert(zoo, ids):
    module, seen = zoo["stdlib-moe"], set()
    before = module(input_ids=ids["search"][:4], use_cache=False).logits

    def see(part, name, expert, x, tokens):
        seen.add((name, expert))
        return x

    with torch.no_grad(), watched(module, module.config, see):
        watched_logits = module(input_ids=ids["search"][:4], use_cache=False).logits
    torch.testing.assert_close(watched_logits, before, atol=1e-4, rtol=1e-4)
    assert {expert for name, expert in seen if name == "down_proj"} == set(range(module.config.num_local_experts))


def test_every_expert_loses_its_own_share(zoo, ids):
    changed, done = compressed(zoo["stdlib-moe"], wanda_method(lambda path: 0.5), ids["calibration"][:8])
    experts = [one for one in done if one.matrix.expert is not None]
    assert len(experts) == 2 * changed.config.num_local_experts * changed.config.num_hidden_layers
    assert all(float((one.matrix.read() == 0).float().mean()) == pytest.approx(0.5, abs=0.01) for one in experts)


def test_embeddings_head_and_norms_stay(zoo, ids):
    changed, done = compressed(zoo["stdlib-gpt2"], wanda_method(lambda path: 0.5), ids["calibration"][:8])
    touched = {one.matrix.path for one in done}
    for (name, now), before in zip(changed.named_parameters(), zoo["stdlib-gpt2"].parameters(), strict=True):
        assert torch.equal(now, before) != (name.removesuffix(".weight") in touched), name


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("method", [wanda_method(lambda path: 0.5), sparsegpt_method(lambda path: 0.5)])
def test_what_reads_zeros_alone_loses_its_smallest_weights(zoo, ids, method, batches):
    silent = copy.deepcopy(zoo["stdlib-lm"])
    silent.model.layers[1].input_layernorm.weight.data.zero_()
    before = silent.model.layers[1].self_attn.q_proj.weight.detach().clone()
    _, done = compressed(silent, method, ids["calibration"][:8], batches)
    unread = {one.matrix.path.removeprefix("model.layers.1.self_attn."): one for one in done if not one.tokens}
    assert unread.keys() == {"q_proj", "k_proj", "v_proj", "o_proj"}  # values of nothing are nothing
    now = unread["q_proj"].matrix.read()
    assert float((now == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    together = (1, 0) if method.name == "wanda" else (128, 1)  # rows, or columns that SparseGPT compares
    for was, part in zip(before.split(*together), now.split(*together), strict=True):
        assert torch.equal(part[part != 0], was[part != 0])
        assert was[part != 0].abs().min() >= was[part == 0].abs().max()


def test_activations_that_are_not_finite_name_their_layer(zoo, ids):
    broken = copy.deepcopy(zoo["stdlib-lm"])
    broken.model.layers[1].input_layernorm.weight.data[3] = torch.inf
    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn\.q_proj: reads NaN or infinity"):
        compressed(broken, wanda_method(lambda path: 0.5), ids["calibration"][:2])


def test_too_few_tokens_for_a_hessian_say_how_many_are_needed(zoo, ids):
    with pytest.raises(InputError, match=r"128 tokens are too few for the Hessian of .*give at least 192 tokens"):
        compressed(zoo["stdlib-lm"], gptq_method(4, 32, False), ids["calibration"][:1])


def test_a_model_that_calls_blocks_twice_is_refused(zoo, ids):
    module = zoo["stdlib-lm"]

    def twice():
        module(input_ids=ids["search"][:1], use_cache=False)
        module(input_ids=ids["search"][:1], use_cache=False)

    with pytest.raises(InputError, match="one after the other"):
        enter(module, twice)
    assert float(losses(module, ids["search"][:2]).mean()) < 5  # the blocks are back in their places

"""The column-by-column solvers against references that are slow and obvious."""

import gc
import weakref

import pytest
import torch

from backends.oneshot.solve import BLOCK, inverse_factor, propagate
from backends.oneshot.statistics import LEAF, Inputs
from backends.prune.joint import Rounding
from backends.prune.masks import kept_in_groups, kept_in_rows
from backends.prune.sparsegpt import sparsegpt
from backends.prune.wanda import wanda
from backends.quantize.gptq import gptq
from backends.quantize.grid import dequantize, encode, grid, quantize


def layer(outputs=24, inputs=160, tokens=600, seed=0):
    """Weights, and inputs that are correlated as activations are."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=rng) / inputs**0.5 + torch.eye(inputs)
    x = torch.randn(tokens, inputs, generator=rng) @ mixing
    read = Inputs(inputs)
    read.add(x, gram=True)
    return torch.randn(outputs, inputs, generator=rng), x, read


def output_error(weight, changed, x):
    return float(((weight - changed) @ x.t()).square().sum())


def one_by_one(weight, hessian, damping, decide):
    """Every column fixed in turn, the inverse Hessian of the columns that remain computed anew each time."""
    w = weight.double().clone()
    h = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(len(hessian))
    for j in range(w.shape[1]):
        inverse = torch.linalg.inv(h[j:, j:])
        column = decide(j, w, inverse[0, 0])
        error = (w[:, j] - column) / inverse[0, 0]
        w[:, j:] -= error[:, None] * inverse[0]
        w[:, j] = column
    return w.float()


@pytest.mark.parametrize("width", [1, 5, LEAF, LEAF + 1, 2 * LEAF + 3, 515])
def test_products_of_inputs_stand_in_both_places(width):
    x = torch.randn(40, width, generator=torch.Generator().manual_seed(0))
    read = Inputs(width)
    for part in x.split(16):
        read.add(part, gram=True)
    torch.testing.assert_close(read.products.double(), x.double().t() @ x.double(), atol=1e-4, rtol=0)
    half = width // 2
    if width > LEAF:
        assert torch.equal(read.products[:half, half:], read.products[half:, :half].t())


def test_the_factor_gives_the_inverse_of_the_damped_hessian():
    _, _, read = layer()
    factor, used = inverse_factor(read.hessian, 0.01)
    damped = read.hessian + 0.01 * read.hessian.diagonal().mean() * torch.eye(160)
    assert used == 0.01
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.t() @ factor @ damped, torch.eye(160), atol=2e-3, rtol=0)


def test_damping_grows_until_there_is_a_factor():
    broken = torch.diag(torch.tensor([1.0, 1.0, -0.03]))
    factor, used = inverse_factor(broken, 0.01)
    assert used == pytest.approx(0.1)
    assert bool(torch.isfinite(factor).all())


def test_a_hessian_of_nan_is_refused():
    with pytest.raises(ValueError, match="not positive definite"):
        inverse_factor(torch.full((3, 3), torch.nan), 0.01)


def test_an_input_that_is_always_zero_changes_nothing_else():
    weight, x, _ = layer()
    x[:, 7] = 0
    read = Inputs(160)
    read.add(x, gram=True)
    rounded, *_ = gptq(weight, read, 4, 32, False, 0.01)
    assert bool(torch.isfinite(rounded).all())
    assert read.idle.nonzero().flatten().tolist() == [7]


def test_changes_reach_every_later_column_whatever_the_block():
    weight, _, read = layer()
    factor, _ = read.factor(0.01)

    def choose(start, columns, diagonal):
        return lambda at, now: torch.round(now * 2) / 2

    whole = propagate(weight, factor, choose, block=160)
    torch.testing.assert_close(propagate(weight, factor, choose, block=48), whole, atol=1e-3, rtol=0)


def test_a_solved_matrix_leaves_nothing_in_memory():
    weight, _, read = layer()
    factor, _ = read.factor(0.01)
    wholes = []

    def choose(start, columns, diagonal):
        wholes.append(weakref.ref(columns._base))
        return lambda at, now: torch.round(now)

    gc.disable()  # which would free what refers to itself, some time
    try:
        propagate(weight, factor, choose)
        assert [one() for one in wholes] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_gptq_equals_columns_fixed_one_by_one(bits, group_size, symmetric):
    weight, _, read = layer()
    size, scales, given = group_size or 160, {}, {}

    def decide(j, w, _):
        if j % BLOCK == 0:
            given["block"] = w.clone()
        if j % size == 0:
            source = given["block"][:, j : j + size] if group_size else weight
            scales[j // size] = grid(source.float(), bits, symmetric)
        scale, zero = scales[j // size]
        codes = (torch.round(w[:, j].float() / scale) + zero).clamp(0, 2**bits - 1)
        return ((codes - zero) * scale).double()

    wanted = one_by_one(weight, read.hessian, 0.01, decide)
    found, *_ = gptq(weight, read, bits, group_size, symmetric, 0.01)
    # a number half-way between two codes may go either way in another order of sums
    assert float((found - wanted).abs().gt(1e-3).float().mean()) < 0.02


@pytest.mark.parametrize("reorder", [False, True])
def test_gptq_gives_numbers_on_its_grid_that_lose_less_than_rounding(reorder):
    weight, x, read = layer()
    found, scales, zeros, _ = gptq(weight, read, 3, 32, False, 0.01, reorder)
    on_grid = dequantize(encode(found, scales, zeros, 3, 32), scales, zeros, 32)
    torch.testing.assert_close(on_grid, found, atol=1e-5, rtol=0)
    rounded = dequantize(*quantize(weight, 3, 32, False), 32)
    assert output_error(weight, found, x) < 0.8 * output_error(weight, rounded, x)


@pytest.mark.parametrize("group_size", [0, 16, 48, 256])
def test_with_inputs_that_say_nothing_gptq_is_rounding_to_nearest(group_size):
    """No column can make up for another: scales must be those of whole groups, whether they divide a block or not."""
    weight, *_ = layer(inputs=300)
    found, scales, *_ = gptq(weight, Inputs.alike(300), 4, group_size, False, 0.01)
    codes, *wanted = quantize(weight, 4, group_size, False)
    torch.testing.assert_close(scales, wanted[0])
    torch.testing.assert_close(found, dequantize(codes, *wanted, group_size))


def test_sparsegpt_equals_columns_fixed_one_by_one_under_its_mask():
    weight, _, read = layer(inputs=96)
    factor, _ = read.factor(0.01)
    found = sparsegpt(weight, factor, 0.5)
    wanted = one_by_one(weight, read.hessian, 0.01, lambda j, w, _: w[:, j] * (found[:, j] != 0))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    assert float((found == 0).float().mean()) == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize("pattern", [(5, 12), (7, 24)])
def test_a_group_is_chosen_when_all_before_it_are_fixed(pattern):
    weight, _, read = layer(inputs=240)
    factor, _ = read.factor(0.01)
    kept, among = pattern
    masks = {}

    def decide(j, w, first):
        if j % among == 0:
            inverse = torch.linalg.inv(damped[j:, j:]) if j < 240 else None
            diagonal = torch.linalg.cholesky(inverse, upper=True).diagonal()[:among]
            masks[j // among] = kept_in_groups((w[:, j : j + among] / diagonal).square(), kept, among)
        return w[:, j] * masks[j // among][:, j % among]

    hessian = read.hessian.double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(240)
    wanted = one_by_one(weight, read.hessian, 0.01, decide)
    found = sparsegpt(weight, factor, 0.0, pattern)
    assert float(((found == 0) != (wanted == 0)).float().mean()) < 0.002  # ties in another order of sums
    assert bool(((found.unflatten(1, (-1, among)) != 0).sum(-1) == kept).all())


@pytest.mark.parametrize("ratio", [0.37, 0.501, 0.6183])
def test_the_ratio_of_a_matrix_is_exact(ratio):
    weight, _, read = layer(inputs=300)
    factor, _ = read.factor(0.01)
    lost = round(ratio * weight.numel())
    assert int((sparsegpt(weight, factor, ratio) == 0).sum()) == lost
    pruned = wanda(weight, read.norms, ratio, exact=True)
    assert int((pruned == 0).sum()) == lost
    by_row = (pruned == 0).sum(1)
    assert int(by_row.max() - by_row.min()) <= 1


def test_sparsegpt_takes_the_lowest_scores_of_its_first_block():
    weight, _, read = layer(inputs=96)
    factor, _ = read.factor(0.01)
    scores = (weight / factor.diagonal()).square()
    lost = sparsegpt(weight, factor, 0.3) == 0
    assert float(scores[lost].max()) <= float(scores[~lost].min())


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (1, 3), (3, 5)])
def test_patterns_keep_exactly_n_of_m(pattern):
    kept, among = pattern
    weight, _, read = layer(inputs=120)
    factor, _ = read.factor(0.01)
    for found in (sparsegpt(weight, factor, 0.0, pattern), wanda(weight, read.norms, 0.0, pattern)):
        assert bool((found.unflatten(1, (-1, among)) != 0).sum(-1).eq(kept).all())


def test_losing_less_costs_more_work():
    weight, x, read = layer()
    factor, _ = read.factor(0.01)
    ones = torch.ones(160)
    magnitude, by_inputs = wanda(weight, ones, 0.6), wanda(weight, read.norms, 0.6)
    solved = sparsegpt(weight, factor, 0.6)
    errors = [output_error(weight, changed, x) for changed in (solved, by_inputs, magnitude)]
    assert errors == sorted(errors)


@pytest.mark.parametrize("pattern", [(0, 0), (2, 4)])
def test_pruning_and_rounding_jointly_gives_zeros_and_numbers_on_the_grid(pattern):
    weight, x, read = layer(inputs=200)
    factor, _ = read.factor(0.01)
    then = Rounding(weight, 4, 48)  # the last group has fewer columns
    found = sparsegpt(weight, factor, 0.5, pattern, then)
    codes = encode(found, then.scales, then.zeros, 4, 48)
    torch.testing.assert_close(dequantize(codes, then.scales, then.zeros, 48), found, atol=1e-5, rtol=0)
    assert float((found == 0).float().mean()) >= 0.5 - 1e-3
    after = sparsegpt(weight, factor, 0.5, pattern)
    rounded = dequantize(*quantize(after, 4, 48), 48) * (after != 0)
    assert output_error(weight, found, x) < output_error(weight, rounded, x)


def test_masks_keep_what_scores_highest():
    scores = torch.rand(5, 12, generator=torch.Generator().manual_seed(0))
    for row, kept in zip(scores, kept_in_rows(scores, 0.25), strict=True):
        assert set(row[kept].tolist()) == set(sorted(row.tolist())[3:])
    groups, kept = scores.unflatten(1, (-1, 4)), kept_in_groups(scores, 2, 4).unflatten(1, (-1, 4))
    for group, stays in zip(groups.flatten(0, 1), kept.flatten(0, 1), strict=True):
        assert set(group[stays].tolist()) == set(sorted(group.tolist())[2:])
    with pytest.raises(ValueError, match="do not divide"):
        kept_in_groups(scores, 2, 5)

"""The two searches of AWQ against references that are slow and obvious."""

import pytest
import torch

from backends.quantize.awq import CLIPS, awq, channel_factors, clipped_ranges
from backends.quantize.grid import dequantize, grid, quantize

BITS, GROUP = 3, 16


def layer(outputs=12, inputs=64, tokens=400, seed=0):
    """Weights with outliers, and inputs of which a few channels are large."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, inputs, generator=rng)
    x[:, ::9] *= 12
    weight = torch.randn(outputs, inputs, generator=rng)
    weight[torch.rand(weight.shape, generator=rng) < 0.02] *= 4
    return weight, x, x.t() @ x / len(x)


def lost(weight, rounded, x):
    return float(((weight - rounded) @ x.t()).square().sum() / len(x))


def rounded_by(weight, factors, symmetric):
    return dequantize(*quantize(weight * factors, BITS, GROUP, symmetric), GROUP) / factors


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_factors_are_the_best_of_the_powers_of_the_activations(symmetric):
    weight, x, moment = layer()
    other = layer(seed=1)[0]
    size = x.square().mean(0).sqrt()
    tried = []
    for step in range(20):
        factors = (size ** (step / 20)).clamp(min=1e-4)
        factors /= (factors.max() * factors.min()).sqrt()
        tried.append((sum(lost(w, rounded_by(w, factors, symmetric), x) for w in (weight, other)), factors))
    best = min(tried, key=lambda pair: pair[0])[1]
    torch.testing.assert_close(channel_factors([weight, other], moment, BITS, GROUP, symmetric, 20), best)
    assert bool((best != 1).any())


def test_factors_that_win_too_little_stay_ones():
    weight, _, moment = layer()
    assert channel_factors([weight], moment, BITS, GROUP, False, 20, worth=0.0).eq(1).all()


def test_ranges_are_cut_where_that_loses_less_knowing_the_groups_before():
    weight, x, moment = layer()
    scales, zeros = clipped_ranges(weight, moment, BITS, GROUP, False)
    for row in range(len(weight)):
        error = torch.zeros(weight.shape[1])
        for group in range(weight.shape[1] // GROUP):
            columns = slice(group * GROUP, (group + 1) * GROUP)
            tried = []
            for share in CLIPS:
                scale, zero = grid(weight[row : row + 1, columns] * share, BITS, False)
                codes = (torch.round(weight[row, columns] / scale) + zero).clamp(0, 2**BITS - 1)
                now = error.clone()
                now[columns] = weight[row, columns] - (codes - zero) * scale
                tried.append((float((x @ now).square().mean()), scale, zero, now))
            _, scale, zero, error = min(tried, key=lambda found: found[0])
            assert scales[row, group] == scale
            assert zeros[row, group] == zero


@pytest.mark.parametrize("symmetric", [False, True])
def test_each_search_loses_less_than_rounding(symmetric):
    weight, x, moment = layer()
    ones = torch.ones(weight.shape[1])
    factors = channel_factors([weight], moment, BITS, GROUP, symmetric, 20)
    errors = [
        lost(weight, awq(weight, by, moment, BITS, GROUP, symmetric, clip)[0], x)
        for by, clip in ((ones, False), (factors, False), (factors, True))
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.7 * errors[0]

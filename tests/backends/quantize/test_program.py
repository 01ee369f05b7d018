"""One form for each layer: the best of all choices, found without trying them."""

import itertools

import numpy as np
import pytest

from backends.quantize.program import least_bytes, least_loss
from knowledge.values import RunFailed


def made(seed, layers=6, forms=3, scale=1.0):
    """Losses that fall with the bytes, over many powers of ten as measured ones do."""
    rng = np.random.default_rng(seed)
    sizes = [np.sort(rng.integers(100, 10_000, forms)).astype(float) for _ in range(layers)]
    losses = [np.sort(10 ** rng.uniform(-8, -1, forms))[::-1].copy() * scale for _ in range(layers)]
    return losses, sizes


def total(costs, choice):
    return float(sum(cost[i] for cost, i in zip(costs, choice, strict=True)))


def best(objective, limited, limit):
    """The least objective of every choice within a limit."""
    choices = itertools.product(*(range(len(costs)) for costs in objective))
    return min(total(objective, choice) for choice in choices if total(limited, choice) <= limit)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_choice_within_the_bytes_loses_less(seed, scale):
    losses, sizes = made(seed, scale=scale)
    for share in (0.3, 0.6, 0.9):
        narrow, wide = sum(s[0] for s in sizes), sum(s[-1] for s in sizes)
        budget = narrow + share * (wide - narrow)
        choice = least_loss(losses, sizes, budget)
        assert total(sizes, choice) <= budget
        assert total(losses, choice) == pytest.approx(best(losses, sizes, budget), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_choice_within_the_loss_takes_fewer_bytes(seed):
    losses, sizes = made(seed)
    for share in (1e-3, 1e-1, 0.5):
        limit = sum(loss[-1] for loss in losses) + share * sum(loss[0] for loss in losses)
        choice = least_bytes(losses, sizes, limit)
        assert total(losses, choice) <= limit * (1 + 1e-6)
        assert total(sizes, choice) == best(sizes, losses, limit)


def test_forms_that_break_the_model_are_never_taken():
    losses = [np.array([np.inf, 0.5]), np.array([0.1, 0.0])]
    assert least_loss(losses, [np.array([1.0, 9.0])] * 2, 10) == [1, 0]
    with pytest.raises(RunFailed, match=r"the smallest choice of bits takes 10 bytes, of 9 that may be used"):
        least_loss(losses, [np.array([1.0, 9.0])] * 2, 9)
    with pytest.raises(RunFailed, match=r"the smallest choice of bits takes inf bytes"):
        least_loss([np.array([np.inf])], [np.array([1.0])], 9)


def test_a_loss_that_no_choice_stays_within_is_told():
    with pytest.raises(RunFailed, match=r"the widest bits lose 0\.3 already, of 0\.2 that may be lost"):
        least_bytes([np.array([1.0, 0.3])], [np.array([1.0, 2.0])], 0.2)


def test_of_equal_losses_the_smaller_form_is_taken():
    assert least_loss([np.zeros(3)] * 4, [np.array([3.0, 1.0, 2.0])] * 4, 100) == [1] * 4


def test_the_solver_writes_nothing_of_its_own(capfd):
    for seed in range(5):
        losses, sizes = made(seed, layers=30, forms=4)
        least_loss(losses, sizes, 0.5 * sum(s.sum() / 2 for s in sizes))
    assert capfd.readouterr().out == ""
    print("still there")
    assert capfd.readouterr().out == "still there\n"

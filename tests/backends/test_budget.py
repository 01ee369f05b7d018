"""The search for what may be foretold ends within the budget, near it, and with the model of its answer."""

import math

import pytest

from backends.budget import LEAP, MORE, NEAR, TRIES, within
from knowledge.values import RunFailed


def search(curve, asked, least=1e-6, most=10.0):
    """(answer, loss of the last model made, models made)."""
    made = []

    def outcome(foretold):
        made.append(foretold)
        return curve(foretold)

    found = within(asked, outcome, least, most, "the least of it loses")
    assert made[-1] == found
    assert all(least <= one <= most for one in made)
    return found, curve(found), len(made)


CURVES = {
    "as foretold": lambda p: p,
    "seven times as much": lambda p: 7 * p,
    "a third": lambda p: p / 3,
    "above additive": lambda p: 40 * p**1.6,
    "below additive": lambda p: 0.2 * p**0.7,
    "a floor": lambda p: 0.0014 + p,
    "steps": lambda p: 2 * 1.5 ** math.floor(math.log(p, 1.5)),
    "infinite far out": lambda p: p if p < 0.002 else math.inf,
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("asked", [0.003, 0.03, 0.3])
@pytest.mark.parametrize("least", [1e-6, 1e-4])
def test_the_model_is_within_its_budget_and_near_it(name, asked, least):
    _, lost, made = search(CURVES[name], asked, least)
    assert lost <= asked
    assert made <= TRIES + MORE + 1
    if name not in ("steps", "infinite far out"):
        assert lost >= 0.6 * asked


def test_what_is_right_at_once_is_made_once():
    assert search(lambda p: 0.9 * p, 0.1) == (0.1, pytest.approx(0.09), 1)
    assert search(lambda p: p * NEAR, 0.1)[2] == 1


def test_where_all_fits_all_is_taken():
    found, lost, _ = search(lambda p: p / 1000, 5.0, most=8.0)
    assert (found, lost) == (8.0, 0.008)


def test_the_search_goes_on_from_the_least():
    found, lost, _ = search(lambda p: 1e4 * p**3, 0.02, least=0.01)
    assert found > 0.01
    assert 0.015 < lost <= 0.02


def test_where_nothing_is_lost_more_is_foretold_to_the_end_of_the_tries():
    assert search(lambda p: 0.0, 0.1) == (pytest.approx(0.1 * LEAP ** (TRIES - 1)), 0.0, TRIES)


def test_the_least_is_taken_where_nothing_else_fits():
    found, lost, _ = search(lambda p: 0.01 if p <= 1e-5 else 1.0, 0.02, least=1e-5)
    assert (found, lost) == (1e-5, 0.01)


@pytest.mark.parametrize("curve", [lambda p: 1 + p, lambda p: math.inf])
def test_a_budget_that_the_least_exceeds_is_told(curve):
    with pytest.raises(RunFailed, match=r"^the least of it loses (1|inf) already, of 0.02 that may be lost$"):
        search(curve, 0.02, least=1e-5)

"""How parts of a model share zeros under one total: from what was measured of each part to a ratio for each.

Numbers only. A part is whatever is measured as one: a block of a transformer, a layer. Whatever is measured, the mean
of the ratios, each part weighing as much as it has weights, is the ratio that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from backends.quantize.program import least_loss

Numbers = NDArray[np.float64]
LEVELS = (0.2, 0.5, 0.8, 0.95)  # ratios at which losses are measured
STEP = 0.01  # between the ratios that the program chooses among
LEAST = 1e-9  # of the largest loss: what a part that loses nothing counts as
SMALLEST, LARGEST = 0.01, 0.95  # ratios that a budget of loss leads to
NEAR = 0.001  # how far below the largest possible ratio it may stay


def reach(ratio: float, bound: float) -> float:
    """How far ratios may be from the common one: `bound`, and so that all stay between half of it and halfway to 1.

    >>> reach(0.6, 0.08), round(reach(0.9, 0.08), 3)
    (0.08, 0.05)
    """
    return min(bound, ratio / 2, (1 - ratio) / 2)


def by_outliers(outliers: Numbers, weights: Numbers, ratio: float, bound: float) -> Numbers:
    """Ratios that fall with the share of outliers, the farthest by the whole bound (arXiv:2310.05175, section 3.2).

    >>> by_outliers(np.array([0.03, 0.01, 0.02]), np.ones(3), 0.6, 0.1).round(3).tolist()
    [0.5, 0.7, 0.6]
    """
    distance = outliers - np.average(outliers, weights=weights)
    farthest = np.abs(distance).max()
    shift = distance / farthest * reach(ratio, bound) if farthest else np.zeros_like(distance)
    found: Numbers = ratio - shift
    return found


def by_losses(curves: Numbers, weights: Numbers, ratio: float, bound: float) -> Numbers:
    """Ratios with the least sum of losses: an integer program over steps of each part's curve, within `reach`.

    curves: [parts, levels], what each part alone loses at LEVELS. What the program leaves of a step beyond the total
    is taken back from every part by its distance from the lowest ratio.
    """
    far = reach(ratio, bound)
    steps = np.linspace(ratio - far, ratio + far, 2 * math.ceil(far / STEP) + 1)  # the common ratio is one of them
    losses = losses_at(curves, np.tile(steps, (len(weights), 1)))
    places = least_loss(list(losses), list(weights[:, None] * (1 - steps)), float(weights.sum() * (1 - ratio)))
    chosen = steps[places]
    room = chosen - steps[0]
    over, most = (np.average(chosen, weights=weights) - ratio, np.average(room, weights=weights))
    found: Numbers = chosen - room * (over / most) if most else chosen
    return found


def losses_at(curves: Numbers, ratios: Numbers) -> Numbers:
    """What each part alone loses at ratios of its own, from what it loses at LEVELS. Both: [parts, any number]

    The logarithm of a loss hardly bends over the logarithm of r / (1 − r): between LEVELS a monotone cubic goes through
    the points, beyond them a straight line.

    >>> losses_at(np.array([[0.01, 0.1, 1.0, 2.0]]), np.array([[0.1, 0.2, 0.5, 0.65]])).round(4).tolist()
    [[0.0026, 0.01, 0.1, 0.3234]]
    """
    from scipy.interpolate import PchipInterpolator

    ends = np.log(np.array(LEVELS) / (1 - np.array(LEVELS)))
    least = LEAST * curves.max(initial=0) or LEAST
    points = np.log(np.maximum(np.maximum.accumulate(curves, axis=1), least))
    at = np.log(ratios / (1 - ratios))
    inside = np.clip(at, ends[0], ends[-1])
    found = np.array([PchipInterpolator(ends, row)(x) for row, x in zip(points, inside, strict=True)])
    rise = np.diff(points, axis=1) / np.diff(ends)
    first = np.maximum(rise[:, :1], 1.0)  # no zeros cost nothing
    found += first * np.minimum(at - ends[0], 0) + rise[:, -1:] * np.maximum(at - ends[-1], 0)
    losses: Numbers = np.exp(found)
    return losses


def lost_together(curves: Numbers, ratios: Numbers) -> float:
    """The sum of what parts alone lose at these ratios."""
    return float(losses_at(curves, ratios[:, None]).sum())


def largest_ratio(curves: Numbers, shared: Callable[[float], Numbers], max_loss: float) -> float:
    """The largest common ratio whose parts, as they share it, lose `max_loss` together at most, or SMALLEST."""
    low, high = SMALLEST, LARGEST
    if lost_together(curves, shared(high)) <= max_loss:
        return high
    while high - low > NEAR:
        middle = (low + high) / 2
        low, high = (middle, high) if lost_together(curves, shared(middle)) <= max_loss else (low, middle)
    return low

"""How parts of a model share zeros under one total: from what was measured of each part to a ratio for each.

Numbers only. A part is whatever is measured as one: a block of a transformer, a convolution. Whatever is measured, the
mean of the ratios, each part weighing as much as it has weights, is the ratio that was asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
STEPS = 200  # of the bisection: more than a double has bits
LEAST = 1e-9  # of the largest loss: what a part that loses nothing counts as


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


def by_losses(low: Numbers, high: Numbers, weights: Numbers, ratio: float, bound: float) -> Numbers:
    """Ratios with the least sum of losses, given what each part alone loses at `ratio` ± `reach`.

    Between the two a loss grows by the same factor with every step. At the optimum one weight more costs as much in
    every part that is not at its bound: wₚ · λ = dLₚ/drₚ, with the λ at which the total is right.
    """
    far = reach(ratio, bound)
    least = LEAST * max(high.max(), low.max()) or LEAST
    low = np.maximum(low, least)
    growth = np.log(np.maximum(high / low, 1 + LEAST)) / (2 * far)  # of a part's loss, its logarithm for each ratio

    def ratios(price: float) -> Numbers:
        at = (price + np.log(weights) - np.log(growth * low)) / growth - far
        found: Numbers = ratio + np.clip(at, -far, far)
        return found

    ends = np.log(growth * low) - np.log(weights)
    below, above = float(ends.min()), float((ends + 2 * far * growth).max())
    for _ in range(STEPS):
        middle = (below + above) / 2
        if np.average(ratios(middle), weights=weights) < ratio:
            below = middle
        else:
            above = middle
    return ratios(above)

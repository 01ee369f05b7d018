"""A budget of loss that a whole model keeps, where only the sum of its layers' losses can be foretold.

foretold loss ─ program ─► a ratio or form for each layer ─► the model ─► its loss     over the budget, or far under:
      ▲                                                                     │          foretell less, or more
      └─────────────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import math
from collections.abc import Callable

from knowledge.values import RunFailed

NEAR, GOAL = 0.85, 0.95  # of the budget: what is near enough, and what is aimed at
TRIES, MORE = 4, 2  # models that are made, and how many more where none of those is within the budget
LEAP = 4.0  # most by which a foretold loss changes from one try to the next

Point = tuple[float, float]  # what was foretold, and what came of it


def within(asked: float, outcome: Callable[[float], float], least: float, most: float, what: str) -> float:
    """The largest foretold loss found, from `least` to `most`, whose model loses `asked` at most.

    `outcome` makes the model and gives its loss; the model that it makes last is the one of the answer. Losses grow
    with what is foretold, by a power that is learned on the way. Raises RunFailed, which begins with `what`, where the
    least loses too much already.
    """
    inside: list[Point] = []
    outside: list[Point] = []

    def tried(at: float) -> float:
        lost = outcome(at)
        (inside if lost <= asked else outside).append((at, lost))
        return lost

    at = min(max(asked, least), most)
    lost = tried(at)
    while len(inside) + len(outside) < (TRIES if inside else TRIES + MORE):
        if (inside and at >= most) or NEAR * asked <= lost <= asked or (lost > asked and at <= least):
            break
        at = min(max(_next(asked * GOAL, inside, outside), least), most)
        lost = tried(at)
    if not inside and at > least:
        at = least
        lost = tried(at)
    if not inside:
        raise RunFailed(f"{what} {lost:.2g} already, of {asked:g} that may be lost")
    best = max(inside)[0]
    if best != at:
        outcome(best)
    return best


def _next(goal: float, inside: list[Point], outside: list[Point]) -> float:
    """Where the curve through the nearest points reaches the goal, in logarithms."""
    if inside and outside:
        (low, less), (high, more) = max(inside), min(outside)
        share = math.log(goal / less) / math.log(more / less) if 0 < less < goal and math.isfinite(more) else 0.5
        return float(low * (high / low) ** min(max(share, 0.1), 0.9))
    at, lost = max(inside) if inside else min(outside)
    if not 0 < lost < math.inf:
        return at * LEAP if inside else at / LEAP
    power = 1.0
    if len(outside) > 1 and math.isfinite(outside[-2][1]) and outside[-2][0] != at:
        (before, earlier), _ = outside[-2:]
        power = min(max(math.log(earlier / lost) / math.log(before / at), 1 / LEAP), LEAP)
    return float(at * min(max((goal / lost) ** (1 / power), 1 / LEAP), LEAP))

"""Losses on a scale where they may be averaged, and curves that never fall as a technique is turned up."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

ALMOST = 0.999  # of the largest possible loss: the scale has no end there


@dataclass(frozen=True)
class Scale:
    """Losses near nothing count as differences, larger ones as ratios, and none exceeds what there is to lose.

        loss (pp)       0     1     4    20    80       most = 90, knee = 1
        on the scale    0  0.88   2.1   3.8   6.0

    >>> scale = Scale(knee=1.0, most=90.0)
    >>> [round(scale.loss(scale.of(loss)), 6) for loss in (-0.3, 0.0, 1.0, 60.0)]
    [-0.3, 0.0, 1.0, 60.0]
    """

    knee: float  # below it a difference is a difference
    most: float = math.inf  # the largest loss there can be

    def of(self, loss: float) -> float:
        """A loss on the scale."""
        if math.isfinite(self.most):
            loss = -self.most * math.log1p(-min(loss / self.most, ALMOST))
        return math.asinh(loss / self.knee)

    def loss(self, value: float) -> float:
        """The inverse of `of`."""
        found = self.knee * math.sinh(min(value, 50.0))
        return -self.most * math.expm1(-found / self.most) if math.isfinite(self.most) else found


@dataclass(frozen=True)
class Curve:
    """A line through the points (strength, value) that starts at nothing and never falls."""

    strengths: tuple[float, ...]  # increasing, the first is 0
    values: tuple[float, ...]

    @classmethod
    def through(cls, strengths: Sequence[float], values: Sequence[float], weights: Sequence[float]) -> Curve:
        """The weighted least-squares fit: points of one strength are averaged, falls pooled (isotonic regression)."""
        points: dict[float, tuple[float, float]] = {}  # strength: (weight, weighted sum)
        for strength, value, weight in zip(strengths, values, weights, strict=True):
            mass, total = points.get(at := round(strength, 4), (0.0, 0.0))
            points[at] = mass + weight, total + weight * value
        along = sorted(points)
        means = [points[at][1] / points[at][0] for at in along]
        fitted = [max(value, 0.0) for value in isotonic(means, [points[at][0] for at in along])]
        if along[0] > 0:
            along, fitted = [0.0, *along], [0.0, *fitted]
        return cls(tuple(along), tuple(fitted))

    def at(self, strength: float) -> float:
        """The value at a strength; beyond the last point the loss behind it grows with the square of the strength."""
        last = self.strengths[-1]
        if strength >= last:
            return math.asinh(math.sinh(self.values[-1]) * (strength / last) ** 2) if last > 0 else self.values[-1]
        after = bisect.bisect_right(self.strengths, strength)
        if after == 0:
            return self.values[0]
        x0, x1 = self.strengths[after - 1 : after + 1]
        y0, y1 = self.values[after - 1 : after + 1]
        return y0 + (y1 - y0) * (strength - x0) / (x1 - x0)


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The closest sequence that never falls: neighbors that fall are pooled into their weighted mean.

    >>> isotonic([1.0, 3.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0])
    [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for value, weight in zip(values, weights, strict=True):
        mean, mass, members = value, weight, 1
        while pools and pools[-1][0] > mean:
            before, more, count = pools.pop()
            mean = (before * more + mean * mass) / (more + mass)
            mass, members = mass + more, members + count
        pools.append((mean, mass, members))
    return [mean for mean, _, members in pools for _ in range(members)]

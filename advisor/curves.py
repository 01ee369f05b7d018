"""Losses on a scale where they may be averaged, and curves that never fall as a technique is turned up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ALMOST = 0.999  # of the largest possible loss: the scale has no end there


@dataclass(frozen=True)
class Scale:
    """Losses near nothing count as differences, larger ones as ratios, and none exceeds what there is to lose.

        loss (pp)       0     1     4    20    80       most = 90, knee = 1
        on the scale    0  0.88   2.1   3.8   6.0

    >>> scale = Scale(knee=1.0, most=90.0)
    >>> bool(np.allclose(scale.losses(scale.of([-0.3, 0.0, 1.0, 60.0])), [-0.3, 0.0, 1.0, 60.0]))
    True
    """

    knee: float  # below it a difference is a difference
    most: float = np.inf  # the largest loss there can be

    def of(self, losses: object) -> Floats:
        """Losses [n] on the scale [n]."""
        x = np.asarray(losses, dtype=np.float64)
        if np.isfinite(self.most):
            x = -self.most * np.log1p(-np.minimum(x / self.most, ALMOST))
        return np.asarray(np.arcsinh(x / self.knee), dtype=np.float64)

    def losses(self, values: object) -> Floats:
        """The inverse of `of`."""
        x = self.knee * np.sinh(np.minimum(np.asarray(values, dtype=np.float64), 50.0))
        if np.isfinite(self.most):
            x = -self.most * np.expm1(-x / self.most)
        return np.asarray(x, dtype=np.float64)


@dataclass(frozen=True)
class Curve:
    """A line through the points (strength, value) that starts at nothing and never falls."""

    strengths: Floats  # increasing, the first is 0
    values: Floats

    @classmethod
    def through(cls, strengths: Sequence[float], values: Sequence[float], weights: Sequence[float]) -> Curve:
        """The weighted least-squares fit: points of one strength are averaged, falls pooled (isotonic regression)."""
        at, where = np.unique(np.round(strengths, 4), return_inverse=True)
        mass = np.bincount(where, weights=weights).astype(np.float64)
        means = np.bincount(where, weights=np.multiply(values, weights)) / mass
        fitted = np.maximum(isotonic(means, mass), 0.0)
        if at[0] > 0:
            at, fitted = np.concatenate(([0.0], at)), np.concatenate(([0.0], fitted))
        return cls(at, fitted)

    def at(self, strength: float) -> float:
        """The value at a strength; beyond the last point the loss behind it grows with the square of the strength."""
        last = float(self.strengths[-1])
        if strength > last > 0:
            return math.asinh(math.sinh(float(self.values[-1])) * (strength / last) ** 2)
        return float(np.interp(strength, self.strengths, self.values))


def isotonic(values: Floats, weights: Floats) -> Floats:
    """The closest sequence that never falls: neighbors that fall are pooled into their weighted mean.

    >>> isotonic(np.array([1.0, 3.0, 2.0, 4.0]), np.ones(4)).tolist()
    [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, members = value, weight, 1
        while pools and pools[-1][0] > mean:
            before, more, count = pools.pop()
            mean = (before * more + mean * mass) / (more + mass)
            mass, members = mass + more, members + count
        pools.append((mean, mass, members))
    return np.repeat([p[0] for p in pools], [p[2] for p in pools])

"""What a chain costs in quality: an interval from published and measured figures, monotone in the strengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from knowledge.load import Knowledge
from knowledge.schema import STATUSES, Claim
from knowledge.techniques.base import Family, Level, Technique
from knowledge.values import Interval

# how much a figure counts, and how far the truth may be from it (a factor up and down)
WEIGHT = {"measured": 1.0, "paper": 0.6, "reported": 0.4, "corrected": 0.3, "unsourced": 0.1}
SPREAD = {"measured": 1.5, "paper": 1.8, "reported": 2.0, "corrected": 2.2, "unsourced": 2.5}
OTHER_FAMILY = 1.3  # wider where the figures come from another architecture family
OTHER_METRIC = 1.8  # wider where they come from another metric
ASSUMED_SPREAD = 3.0
FLOOR = 0.1  # no lossy stage is surer than this, in pp or %
RECOVERY_LEFT = 0.4  # share of a loss that recovery training leaves, where no figure says: S3 has 0.23 and 0.46

# a point of accuracy in other currencies, for techniques without a figure in that metric
EXCHANGE = {"accuracy": 1.0, "perplexity": 8.0, "similarity": 5.0, "fidelity": 5.0}
# loss in points at strength 1 before recovery, for techniques without any figure
ASSUMED = {Family.DISTILL: 3.0, Family.RESHAPE: 12.0, Family.FACTORIZE: 12.0, Family.PRUNE: 15.0, Family.QUANTIZE: 1.0}


@dataclass(frozen=True)
class Spread:
    """A loss as low ≤ mid ≤ high, with the figures behind it."""

    low: float
    mid: float
    high: float
    basis: str


NOTHING = Spread(0.0, 0.0, 0.0, "lossless")


class QualityModel:
    """Losses for one architecture family and one metric; each technique is asked once."""

    def __init__(self, knowledge: Knowledge, family: str, metric: str, unit: Literal["pp", "%"]) -> None:
        self.knowledge, self.family, self.metric, self.unit = knowledge, family, metric, unit
        self._known: dict[tuple[Technique, bool], Spread] = {}

    def stage(self, technique: Technique, recovered: bool) -> Spread:
        """Loss of one stage, before or after recovery training."""
        key = (technique, recovered)
        if key not in self._known:
            self._known[key] = self._stage(technique, recovered)
        return self._known[key]

    def chain(self, techniques: Sequence[Technique]) -> Spread:
        """Loss of a chain. Middles add up (relative losses compound), distances from the middle add in squares."""
        parts = [self.stage(t, r) for t, r in with_recovery(techniques) if not t.lossless]
        if not parts:
            return NOTHING
        compound = self.metric == "perplexity"
        mid = 100 * (math.prod(1 + p.mid / 100 for p in parts) - 1) if compound else sum(p.mid for p in parts)
        low = mid - math.sqrt(sum((p.mid - p.low) ** 2 for p in parts))
        high = mid + math.sqrt(sum((p.high - p.mid) ** 2 for p in parts))
        basis = "; ".join(dict.fromkeys(p.basis for p in parts))
        return Spread(max(0.0, low), mid, high, basis if len(parts) == 1 else f"{basis}; losses added up")

    def interval(self, spread: Spread) -> Interval:
        """A spread as it is shown."""
        rounded = {name: round(getattr(spread, name), 3) for name in ("low", "mid", "high")}
        return Interval(**rounded, unit=self.unit, basis=spread.basis)

    def _stage(self, technique: Technique, recovered: bool) -> Spread:
        strength = technique.strength()
        claims = self._claims(technique.id)
        if not claims:
            points = ASSUMED.get(technique.family, 5.0) * strength * EXCHANGE[self.metric]
            mid = points * (RECOVERY_LEFT if recovered and technique.family is not Family.DISTILL else 1.0)
            return _around(mid, ASSUMED_SPREAD, f"{technique.id}: no published figure was found, assumed")
        own = [c for c in claims if c.recovered == recovered] or claims
        mid = curve(own, strength) * self._exchange(own)
        basis = _cited(technique.id, own)
        if own[0].recovered != recovered and recovered:
            mid *= RECOVERY_LEFT
            basis += ", recovery assumed to win back 60 %"
        elif own[0].recovered != recovered:
            mid /= RECOVERY_LEFT
            basis += ", without the recovery these had"
        if self._exchange(own) != 1:
            basis += f", carried over to {self.metric}"
        return _around(mid, self._factor(own), basis)

    def _claims(self, technique: str) -> list[Claim]:
        """The figures that say most: same metric before other metrics, same family before other families."""
        claims = self.knowledge.claims_by_technique.get(technique, [])
        family = "transformer" if self.family == "moe" else self.family
        metric = "similarity" if self.metric == "fidelity" else self.metric
        for group in (
            [c for c in claims if c.metric == metric and c.arch == family],
            [c for c in claims if c.metric == metric],
            [c for c in claims if c.arch == family],
        ):
            if group:
                return group
        return claims

    def _exchange(self, claims: Sequence[Claim]) -> float:
        metric = "similarity" if self.metric == "fidelity" else self.metric
        return 1.0 if claims[0].metric == metric else EXCHANGE[self.metric] / EXCHANGE[claims[0].metric]

    def _factor(self, claims: Sequence[Claim]) -> float:
        factor = min(SPREAD[c.status] for c in claims)
        if all(c.arch != ("transformer" if self.family == "moe" else self.family) for c in claims):
            factor *= OTHER_FAMILY
        return factor * (OTHER_METRIC if self._exchange(claims) != 1 else 1.0)


def with_recovery(techniques: Sequence[Technique]) -> list[tuple[Technique, bool]]:
    """Each lossy stage with whether training follows it before the model leaves torch. A student is trained already."""
    found = []
    for number, technique in enumerate(techniques):
        if technique.family is Family.RECOVER:
            continue
        trained = technique.level is Level.MODEL and (
            technique.family is Family.DISTILL or any(t.family is Family.RECOVER for t in techniques[number + 1 :])
        )
        found.append((technique, trained))
    return found


def curve(claims: Sequence[Claim], strength: float) -> float:
    """Loss at a strength: a line through the pooled figures that starts at nothing and never falls.

    Figures that would make it fall are averaged by weight (pool adjacent violators); beyond the strongest one the loss
    grows with the square of the strength.
    """
    from knowledge.techniques.catalog import CATALOG

    points: dict[float, tuple[float, float]] = {}
    for claim in claims:
        at = round(CATALOG[claim.technique].model_validate(claim.params).strength(), 4)
        loss, weight = points.get(at, (0.0, 0.0))
        more = WEIGHT[claim.status]
        points[at] = ((loss * weight + max(0.0, claim.drop) * more) / (weight + more), weight + more)
    pools: list[list[float]] = []  # [loss, weight, number of points]
    for at in sorted(points):
        pools.append([*points[at], 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            loss, weight, count = pools.pop()
            before = pools[-1]
            before[0] = (before[0] * before[1] + loss * weight) / (before[1] + weight)
            before[1] += weight
            before[2] += count
    losses = [pool[0] for pool in pools for _ in range(int(pool[2]))]
    return _along([0.0, *sorted(points)], [0.0, *losses], strength)


def _along(xs: list[float], ys: list[float], x: float) -> float:
    """Linear between the points; with the square of x beyond the last."""
    if x >= xs[-1]:
        return ys[-1] * (x / xs[-1]) ** 2 if xs[-1] > 0 else ys[-1]
    after = next(i for i, at in enumerate(xs) if at > x)
    share = (x - xs[after - 1]) / (xs[after] - xs[after - 1])
    return ys[after - 1] + share * (ys[after] - ys[after - 1])


def _around(mid: float, factor: float, basis: str) -> Spread:
    return Spread(max(0.0, min(mid / factor, mid - FLOOR)), mid, max(mid * factor, mid + FLOOR), basis)


def _cited(technique: str, claims: Sequence[Claim]) -> str:
    """`distill: BERT-base (Sanh et al. 2019) and 3 more figures (paper)`."""
    ranked = sorted(claims, key=lambda c: STATUSES.index(c.status))
    names = f"{ranked[0].model} ({ranked[0].source})"
    more = f" and {len(ranked) - 1} more" if len(ranked) > 1 else ""
    return f"{technique}: {names}{more} ({ranked[0].status})"

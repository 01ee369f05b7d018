"""What published figures say of a stage's loss: one protocol at a time, never figures of two in one curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from advisor.curves import Curve
from knowledge.load import Knowledge
from knowledge.schema import STATUSES, Claim
from knowledge.techniques.base import Family, Technique
from knowledge.techniques.catalog import CATALOG

# how much a figure counts, and how far the truth may be from it (a factor up and down)
WEIGHT = {"measured": 1.0, "paper": 0.6, "reported": 0.4, "corrected": 0.3, "unsourced": 0.1}
SPREAD = {"measured": 1.5, "paper": 1.8, "reported": 2.0, "corrected": 2.2, "unsourced": 2.5}
OTHER_FAMILY = 1.3  # wider where the figures come from another architecture family
OTHER_METRIC = 1.8  # wider where they come from another metric
ASSUMED_SPREAD = 3.0
RECOVERY_LEFT = 0.4  # share of a loss that recovery training leaves, where no figure says: S3 has 0.23 and 0.46
DECADE = 1.0  # tenfolds of parameters over which what one model tells of another falls to 0.6
USUAL = 1e8  # parameters of a published model that does not say
UNNAMED = "not named"  # a protocol that nobody named is shared with no other figure

# a point of accuracy in other currencies, for techniques without a figure in that metric
EXCHANGE = {"accuracy": 1.0, "perplexity": 8.0, "similarity": 5.0, "fidelity": 5.0}
# loss in points at strength 1 before recovery, for techniques without any figure
ASSUMED = {Family.DISTILL: 3.0, Family.RESHAPE: 12.0, Family.FACTORIZE: 12.0, Family.PRUNE: 15.0, Family.QUANTIZE: 1.0}


@dataclass(frozen=True)
class Published:
    """A loss by published figures, how far it may be off, and how much it counts against measurements."""

    loss: float
    factor: float  # the truth lies between loss ÷ factor and loss × factor
    weight: float
    basis: str


class PublishedLosses:
    """Losses of stages for one architecture family and one metric."""

    def __init__(self, knowledge: Knowledge, family: str, metric: str, parameters: int = 0) -> None:
        self.parameters = parameters
        self.claims = knowledge.claims_by_technique
        self.family = "transformer" if family == "moe" else family
        self.metric = "similarity" if metric == "fidelity" else metric
        self.currency = EXCHANGE[metric]

    def stage(self, technique: Technique, recovered: bool) -> Published:
        """Loss of one stage, before or after recovery training."""
        strength = technique.strength()
        figures = self._protocol(self.claims.get(technique.id, []), recovered, strength)
        if not figures:
            points = ASSUMED.get(technique.family, 5.0) * strength * self.currency
            left = RECOVERY_LEFT if recovered and technique.family is not Family.DISTILL else 1.0
            return Published(
                points * left, ASSUMED_SPREAD, 0.0, f"{technique.id}: no published figure was found, assumed"
            )
        exchange = 1.0 if figures[0].metric == self.metric else self.currency / EXCHANGE[figures[0].metric]
        loss, basis = along(figures, strength) * exchange, cited(technique.id, figures)
        if recovered and not figures[0].recovered:
            loss, basis = loss * RECOVERY_LEFT, f"{basis}, recovery assumed to win back 60 %"
        elif figures[0].recovered and not recovered:
            loss, basis = loss / RECOVERY_LEFT, f"{basis}, without the recovery these had"
        if exchange != 1:
            basis += f", carried over to {self.metric}"
        return Published(loss, self._factor(figures, exchange), self._weight(figures), basis)

    def _protocol(self, claims: Sequence[Claim], recovered: bool, strength: float) -> list[Claim]:
        """The figures of the protocol that says most: nearest metric, family and recovery, surest, nearest strength."""
        groups: dict[tuple[object, ...], list[Claim]] = {}
        for claim in claims:
            protocol = claim.id if claim.protocol == UNNAMED else claim.protocol
            groups.setdefault((claim.metric, claim.arch, claim.recovered, protocol), []).append(claim)

        def fitness(group: list[Claim]) -> tuple[object, ...]:
            first = group[0]
            status = min(STATUSES.index(c.status) for c in group)
            near = min(abs(strength_of(c) - strength) for c in group)
            return (
                first.metric != self.metric, first.arch != self.family, first.recovered != recovered,
                status, round(near, 4), -len(group), first.id,
            )  # fmt: skip

        return min(groups.values(), key=fitness, default=[])

    def _factor(self, claims: Sequence[Claim], exchange: float) -> float:
        factor = min(SPREAD[c.status] for c in claims)
        if claims[0].arch != self.family:
            factor *= OTHER_FAMILY
        return factor * (OTHER_METRIC if exchange != 1 else 1.0)

    def _weight(self, claims: Sequence[Claim]) -> float:
        """Figures of another metric, of another family or of models of quite another size count less."""
        near = claims[0].metric == self.metric and claims[0].arch == self.family
        return max(WEIGHT[c.status] * alike(c.parameters or USUAL, self.parameters) for c in claims) * (
            1.0 if near else 0.3
        )


def alike(parameters: float, other: float) -> float:
    """How much a model of one size tells of a model of another: 1, and next to nothing over several tenfolds."""
    if not parameters or not other:
        return 1.0
    decades = math.log10(parameters / other)
    return math.exp(-((decades / DECADE) ** 2) / 2)


def strength_of(claim: Claim) -> float:
    """How hard a claim's parameters compress, on the technique's own scale."""
    return CATALOG[claim.technique].model_validate(claim.params).strength()


def along(claims: Sequence[Claim], strength: float) -> float:
    """Loss at a strength: a line through the figures that starts at nothing and never falls.

    Figures that would make it fall are averaged by weight; beyond the strongest one the loss grows with the square of
    the strength.
    """
    losses = [max(0.0, c.drop or 0.0) for c in claims]
    curve = Curve.through([strength_of(c) for c in claims], losses, [WEIGHT[c.status] for c in claims])
    last = curve.strengths[-1]
    if strength > last > 0:
        return curve.values[-1] * (strength / last) ** 2
    return curve.at(strength)


def cited(technique: str, claims: Sequence[Claim]) -> str:
    """`distill: BERT-base (Sanh et al. 2019) and 3 more figures (paper)`."""
    ranked = sorted(claims, key=lambda c: STATUSES.index(c.status))
    names = f"{ranked[0].model} ({ranked[0].source})"
    more = f" and {len(ranked) - 1} more" if len(ranked) > 1 else ""
    return f"{technique}: {names}{more} ({ranked[0].status})"

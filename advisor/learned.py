"""What measured chains teach of losses: a curve for each technique, and how far single models lie from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from advisor.curves import Curve, Scale
from advisor.published import alike
from knowledge.evidence import Evidence
from knowledge.techniques.base import Family, Level, Need, Technique
from knowledge.techniques.catalog import CATALOG

Floats = NDArray[np.float64]
# how much a row counts for a model: rows of nearer kin more
KIN = {"subfamily": 3.0, "family": 2.0, "other": 1.0}
# how much a residual counts: of the same techniques, families, first family, of any chain
ALIKE = (1.0, 0.5, 0.2, 0.1)
LOW, HIGH = 0.2, 0.8  # quantiles that a few outliers do not move; the margin makes up for the rest
INSIDE = 0.8  # share of chains that an interval is to hold
EVEN = 0.6  # on the scale: what intervals are widened by alike, beside their own width
LEAST_MODELS = 3  # to tell how far models lie from each other


@dataclass(frozen=True)
class StageKey:
    """A lossy stage as losses depend on it."""

    technique: str
    variant: str  # of the technique's methods
    recovered: bool  # whether training followed
    strength: float

    @property
    def curve(self) -> tuple[str, str, bool]:
        return self.technique, self.variant, self.recovered


@dataclass(frozen=True)
class Outcome:
    """One measured chain."""

    model: str
    family: str
    subfamily: str
    parameters: int
    stages: tuple[StageKey, ...]
    loss: float
    techniques: tuple[Technique, ...] = ()

    @cached_property
    def sorts(self) -> tuple[int, ...]:
        return sorts(self.stages)


def stage_keys(techniques: Sequence[Technique], blocks: int = 0) -> tuple[StageKey, ...]:
    """The lossy stages of a chain on a model of so many blocks."""
    return tuple(stage_key(t, r, blocks) for t, r in with_recovery(techniques) if not t.lossless)


def stage_key(technique: Technique, recovered: bool, blocks: int = 0) -> StageKey:
    variant = str(getattr(technique, technique.method)) if technique.method else ""
    return StageKey(technique.id, variant, recovered, technique.strength_among(blocks))


def with_recovery(techniques: Sequence[Technique]) -> list[tuple[Technique, bool]]:
    """Each lossy stage with whether it trains itself, or training follows it before the model leaves torch."""
    found = []
    for number, technique in enumerate(techniques):
        if technique.family is Family.RECOVER:
            continue
        followed = any(t.family is Family.RECOVER for t in techniques[number + 1 :])
        found.append((technique, Need.TRAINING in technique.needs or (technique.level is Level.MODEL and followed)))
    return found


def outcomes(rows: Iterable[Evidence]) -> list[Outcome]:
    """Measured rows as losses depend on their stages.

    Chains with a technique that is no more are left out, and those that a loss was allowed to, which says nothing of
    how hard they compress.
    """
    found = []
    for row in rows:
        if all(s.technique in CATALOG and s.params.get("max_loss") is None for s in row.stages):
            built = tuple(CATALOG[s.technique].model_construct(**s.params) for s in row.stages)
            keys = stage_keys(built, row.blocks)
            found.append(Outcome(row.model, row.arch, row.subfamily, row.parameters, keys, row.drop, built))
    return [outcome for outcome in found if outcome.stages]


def combined(losses: Sequence[float], compound: bool) -> float:
    """Loss of a chain: points add up, relative losses compound."""
    if compound:
        return 100 * (math.prod(1 + loss / 100 for loss in losses) - 1)
    return sum(losses)


@dataclass(frozen=True)
class Kin:
    """What a model must share with another for its losses to tell of the other's."""

    family: str = ""
    subfamily: str = ""
    parameters: int = 0  # 0: unknown, all sizes count alike

    def weight(self, outcome: Outcome) -> float:
        """How much a row counts: up to 3, and next to nothing for models of quite another size."""
        near = "subfamily" if outcome.subfamily == self.subfamily else "family"
        weight = KIN[near if outcome.family == self.family else "other"]
        return weight * alike(outcome.parameters, self.parameters)


class Curves:
    """Curves of loss over strength, fitted to chains of one lossy stage; nearer kin of the model count more."""

    def __init__(self, measured: Sequence[Outcome], scale: Scale, kin: Kin) -> None:
        points: dict[tuple[object, ...], list[tuple[float, float, float]]] = {}
        for outcome in measured:
            if len(outcome.stages) == 1:
                stage = outcome.stages[0]
                point = (stage.strength, outcome.loss, kin.weight(outcome))
                names: tuple[tuple[object, ...], ...] = (stage.curve, (stage.technique, stage.recovered))
                for name in names:
                    points.setdefault(name, []).append(point)
        self.curves: dict[tuple[object, ...], Curve] = {}
        self.worth: dict[tuple[object, ...], float] = {}  # the rows behind it, each as far as it counts
        for name, found in points.items():
            strengths, losses, weights = zip(*found, strict=True)
            self.curves[name] = Curve.through(strengths, [scale.of(loss) for loss in losses], weights)
            self.worth[name] = sum(weights)

    def stage(self, key: StageKey) -> tuple[float, float] | None:
        """(value on the scale, worth of the measurements behind it); None where nothing was measured."""
        names: tuple[tuple[object, ...], ...] = (key.curve, (key.technique, key.recovered))
        name = next((n for n in names if n in self.curves), None)
        return None if name is None else (self.curves[name].at(key.strength), self.worth[name])


class Learned:
    """What measured chains of other models teach: the loss of a chain, and how far a model may lie from it.

    Quantiles of the other models' residuals make the interval; it is widened until, leaving out each of these models
    in turn, it holds four in five of their chains (conformalized quantile regression, arXiv:1905.03222).
    """

    def __init__(self, measured: Sequence[Outcome], scale: Scale, kin: Kin, compound: bool) -> None:
        self.measured, self.scale, self.kin, self.compound = measured, scale, kin, compound
        self.curves = Curves(measured, scale, kin)
        self._bounds: dict[tuple[int, ...], tuple[float, float]] = {}
        self._predicted: dict[tuple[StageKey, ...], float] = {}  # many models were measured with the same chains

    def knows(self, stages: Sequence[StageKey]) -> bool:
        """Whether every stage was measured on some model."""
        return all(self.curves.stage(s) is not None for s in stages)

    def predicted(self, stages: Sequence[StageKey]) -> float:
        """A chain's loss on the scale by the curves; what they do not know counts as nothing lost."""
        chain = tuple(stages)
        if chain not in self._predicted:
            self._predicted[chain] = self._by_curves(chain)
        return self._predicted[chain]

    def _by_curves(self, stages: Sequence[StageKey]) -> float:
        values = [(self.curves.stage(s) or (0.0, 0.0))[0] for s in stages]
        if len(values) == 1:
            return values[0]
        return self.scale.of(combined([self.scale.loss(value) for value in values], self.compound))

    def residual(self, outcome: Outcome) -> float:
        """How far a measured chain lies from what is predicted for it, on the scale."""
        return self.scale.of(outcome.loss) - self.predicted(outcome.stages)

    def bounds(self, stages: Sequence[StageKey]) -> tuple[float, float] | None:
        """Distances from the prediction that hold 80 % of such chains; None with too few models to tell."""
        if self.margin is None:
            return None
        low, high = self.middle(stages)
        wider = self.margin * (high - low + EVEN)
        return min(low - wider, 0.0), max(high + wider, 0.0)

    def middle(self, stages: Sequence[StageKey]) -> tuple[float, float]:
        """Quantiles of the residuals, those of chains of the same sort counting most."""
        wanted = sorts(stages)
        if wanted not in self._bounds:
            errors, chains, kin = self._residuals
            alike = np.full(len(errors), ALIKE[-1])
            for level in (2, 1, 0):
                alike[chains[:, level] == wanted[level]] = ALIKE[level]
            weights = alike * kin
            self._bounds[wanted] = weighted_quantile(errors, weights, LOW), weighted_quantile(errors, weights, HIGH)
        return self._bounds[wanted]

    @cached_property
    def _residuals(self) -> tuple[Floats, NDArray[np.int64], Floats]:
        """Errors in rising order, the sorts of their chains, and how near their models are."""
        errors = np.array([self.residual(o) for o in self.measured])
        rising = np.argsort(errors, kind="stable")
        chains = np.array([o.sorts for o in self.measured])
        kin = np.array([self.kin.weight(o) for o in self.measured])
        return errors[rising], chains[rising], np.maximum(kin[rising], 1e-9)

    @cached_property
    def margin(self) -> float | None:
        """What widens the quantiles, in their widths: each model left out in turn, how far its chains lay outside."""
        models = sorted({o.model for o in self.measured})
        if len(models) < LEAST_MODELS:
            return None
        outside = []
        for model in models:
            mine = [o for o in self.measured if o.model == model]
            kin = Kin(mine[0].family, mine[0].subfamily, mine[0].parameters)
            rest = Learned([o for o in self.measured if o.model != model], self.scale, kin, self.compound)
            for outcome in mine:
                if rest.knows(outcome.stages):
                    error, (low, high) = rest.residual(outcome), rest.middle(outcome.stages)
                    outside.append(max(low - error, error - high) / (high - low + EVEN))
        return max(0.0, quantile(np.array(outside), INSIDE)) if outside else None


def sorts(stages: Sequence[StageKey]) -> tuple[int, ...]:
    """Numbers of what sort of chain it is, finest first: models differ from the curves alike in chains of one sort."""
    recovered = any(s.recovered for s in stages)
    families = tuple(CATALOG[s.technique].family for s in stages)
    named = (tuple(s.technique for s in stages), recovered), (families, recovered), (families[0], recovered)
    return tuple(_SORTS.setdefault(name, len(_SORTS)) for name in named)


_SORTS: dict[tuple[object, ...], int] = {}  # every sort that was met; numbers compare faster than names


def weighted_quantile(ordered: Floats, weights: Floats, level: float) -> float:
    """A quantile of values in rising order, between the middles of their weights.

    >>> weighted_quantile(np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 1.0]), 0.5)
    1.0
    """
    middles = (np.cumsum(weights) - weights / 2) / weights.sum()
    return float(np.interp(level, middles, ordered))


def quantile(values: Floats, level: float) -> float:
    """The conformal quantile: of n + 1 values, the new one among them, rounded up."""
    rank = min(len(values), math.ceil((len(values) + 1) * level))
    return float(np.sort(values)[rank - 1])

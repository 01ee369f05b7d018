"""What measured chains teach of losses: a curve for each technique, and how far single models lie from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from advisor.curves import Curve, Floats, Scale
from advisor.published import alike
from knowledge.evidence import Evidence
from knowledge.techniques.base import Family, Level, Need, Technique
from knowledge.techniques.catalog import CATALOG

# how much a row counts for a model: rows of nearer kin more, of models ten times as large or small less
KIN = {"subfamily": 3.0, "family": 2.0, "other": 1.0}
LOW, HIGH = 0.1, 0.9  # ends of the interval, of the residuals
ENOUGH = 10  # residuals for quantiles of their own
NEAREST = 20  # of them count: those predicted to lose about as much


@dataclass(frozen=True)
class StageKey:
    """A lossy stage as losses depend on it."""

    technique: str
    recovered: bool  # whether training followed
    strength: float

    @property
    def curve(self) -> tuple[str, bool]:
        return self.technique, self.recovered


@dataclass(frozen=True)
class Outcome:
    """One measured chain."""

    model: str
    family: str
    subfamily: str
    parameters: int
    stages: tuple[StageKey, ...]
    loss: float


def stage_keys(techniques: Sequence[Technique]) -> tuple[StageKey, ...]:
    """The lossy stages of a chain."""
    return tuple(StageKey(t.id, r, t.strength()) for t, r in with_recovery(techniques) if not t.lossless)


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
    """Measured rows as losses depend on their stages; chains with a technique that is no more are left out."""
    found = []
    for row in rows:
        if all(stage.technique in CATALOG for stage in row.stages):
            built = [CATALOG[s.technique].model_construct(**s.params) for s in row.stages]
            keys = stage_keys(built)
            found.append(Outcome(row.model, row.arch, row.subfamily, row.parameters, keys, row.drop))
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
        self.scale = scale
        points: dict[tuple[str, bool], list[tuple[float, float, float]]] = {}
        for outcome in measured:
            if len(outcome.stages) == 1:
                stage = outcome.stages[0]
                points.setdefault(stage.curve, []).append((stage.strength, outcome.loss, kin.weight(outcome)))
        self.curves: dict[tuple[str, bool], Curve] = {}
        self.worth: dict[tuple[str, bool], float] = {}  # the rows behind it, each as far as it counts
        for name, found in points.items():
            strengths, losses, weights = zip(*found, strict=True)
            self.curves[name] = Curve.through(strengths, scale.of(losses).tolist(), weights)
            self.worth[name] = sum(weights)

    def stage(self, key: StageKey) -> tuple[float, float] | None:
        """(value on the scale, worth of the measurements behind it); None where nothing was measured."""
        curve = self.curves.get(key.curve)
        return None if curve is None else (curve.at(key.strength), self.worth[key.curve])


def kinds(stages: Sequence[StageKey]) -> tuple[tuple[object, ...], ...]:
    """What sort of chain it is, finest first: models differ from the curves alike in chains of one sort."""
    recovered = any(s.recovered for s in stages)
    families = tuple(CATALOG[s.technique].family.value for s in stages)
    return (tuple(s.technique for s in stages), recovered), (families, recovered), (families[0], recovered), ()


@dataclass(frozen=True)
class Residual:
    """How far a measured chain lay from what other models' rows predicted for it, both on the scale."""

    kinds: tuple[tuple[object, ...], ...]
    predicted: float
    error: float


class Residuals:
    """Residuals by sort of chain: those of chains that were predicted to lose about as much make the interval."""

    def __init__(self, found: Sequence[Residual]) -> None:
        self.kinds = [r.kinds for r in found]
        self.predicted = np.array([r.predicted for r in found], dtype=np.float64)
        self.errors = np.array([r.error for r in found], dtype=np.float64)

    def bounds(self, stages: Sequence[StageKey], predicted: float) -> tuple[float, float]:
        """Distances from the prediction within which 80 % of such chains lie (split conformal, arXiv:1604.04173)."""
        for level, wanted in enumerate(kinds(stages)):
            own = np.array([k[level] == wanted for k in self.kinds])
            if own.sum() >= ENOUGH:
                break
        errors = self.errors[own]
        nearest = np.argsort(np.abs(self.predicted[own] - predicted), kind="stable")[:NEAREST]
        return quantile(errors[nearest], LOW), quantile(errors[nearest], HIGH)


def quantile(values: Floats, level: float) -> float:
    """The conformal quantile: of n + 1 values, the new one among them, rounded outward."""
    n = len(values)
    if level < 0.5:
        return -quantile(-values, 1 - level)
    rank = min(n - 1, math.ceil((n + 1) * level) - 1)
    return float(np.sort(values)[rank])

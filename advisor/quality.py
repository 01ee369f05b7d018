"""What a chain costs in quality: an interval from published figures, moved by what was measured on models like it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from advisor.curves import Scale
from advisor.learned import Kin, Learned, Outcome, StageKey, combined, outcomes, stage_key, stage_keys, with_recovery
from advisor.published import PublishedLosses
from knowledge.evidence import Evidence
from knowledge.layers import ModelInfo
from knowledge.load import Knowledge
from knowledge.techniques.base import Technique
from knowledge.techniques.catalog import CATALOG
from knowledge.values import Interval

FLOOR = 0.1  # no lossy stage is surer than this, in pp or %
KNEE = {"accuracy": 1.0, "perplexity": 1.0, "similarity": 0.2, "fidelity": 1.0}  # see Scale
NEAR_STRENGTH = 0.08  # on the technique's scale: chains of this model farther off teach less
PRIOR = 0.2  # how many measurements of this model what others say is worth
OTHER_STAGE = 0.3  # what is left of a chain's likeness for each stage that the other one lacks
SUREST = 0.5  # of the usual distance from the prediction, however much was measured on this model
PAPERS = 2.0  # how many measurements a paper's figure is worth
ASSUMED = 0.3  # and what is assumed without any figure
MOSTLY = 0.75  # a share that hides the rest


@dataclass(frozen=True)
class Spread:
    """A loss as low ≤ mid ≤ high, with the figures behind it."""

    low: float
    mid: float
    high: float
    basis: str


@dataclass(frozen=True)
class StageLoss:
    """Loss of one stage: how far published figures may be off, and the share of it that was measured here."""

    loss: float
    factor: float
    share: float
    basis: str


NOTHING = Spread(0.0, 0.0, 0.0, "lossless")


class QualityModel:
    """Losses for one model and one metric; each chain is asked once.

    `evidence`: measured chains of this metric, the user's own and those that ship; `model`: its name in them.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        info: ModelInfo,
        metric: str,
        unit: Literal["pp", "%"],
        evidence: Sequence[Evidence] = (),
        model: str = "",
        parameters: int = 0,
    ) -> None:
        self.info, self.metric, self.unit = info, metric, unit
        self.kin = Kin(info.family, info.subfamily, parameters)
        self.published = PublishedLosses(knowledge, info.family, metric, parameters)
        most = 100.0 * (1 - 1 / info.classes) if metric == "accuracy" and info.classes > 1 else math.inf
        self.scale = Scale(KNEE[metric], 100.0 if metric == "fidelity" else most)
        self.measured = outcomes(row for row in evidence if row.metric == metric)
        self.own = [o for o in self.measured if model and o.model == model]
        self.others = [o for o in self.measured if not (model and o.model == model)]
        self._known: dict[tuple[Technique, bool], StageLoss] = {}
        self._last: tuple[Sequence[Technique], Spread] | None = None

    # -- stages ------------------------------------------------------------------------------------

    @cached_property
    def learned(self) -> Learned:
        """What other models teach; this one's own rows move the result."""
        return Learned(self.others, self.scale, self.kin, self.metric == "perplexity")

    def stage(self, technique: Technique, recovered: bool) -> StageLoss:
        """Loss of one stage, before or after recovery training."""
        key = (technique, recovered)
        if key not in self._known:
            self._known[key] = self._stage(technique, recovered)
        return self._known[key]

    def _stage(self, technique: Technique, recovered: bool) -> StageLoss:
        said = self.published.stage(technique, recovered)
        found = self.learned.curves.stage(stage_key(technique, recovered, self.info.blocks))
        if found is None:
            own = StageLoss(said.loss, said.factor, 0.0, said.basis)
            if not technique.starts_from:
                return own
            start = self.stage(CATALOG[technique.starts_from](), False)
            return min(own, StageLoss(start.loss, start.factor, 0.0, start.basis), key=lambda one: one.loss)
        value, worth = found
        papers = PAPERS * said.weight + ASSUMED
        blended = (worth * value + papers * self.scale.of(said.loss)) / (worth + papers)
        share = worth / (worth + papers)
        bases = [f"{technique.id}: measured on embedded models"] if share > 1 - MOSTLY else []
        bases += [said.basis] if share < MOSTLY else []
        return StageLoss(self.scale.loss(blended), said.factor, share, "; ".join(bases))

    # -- chains ------------------------------------------------------------------------------------

    def chain(self, techniques: Sequence[Technique]) -> Spread:
        """Loss of a chain with its 80 % interval; whoever asks twice in a row is answered at once."""
        if self._last is None or self._last[0] is not techniques or not isinstance(techniques, tuple):
            self._last = (techniques, self._chain(techniques))
        return self._last[1]

    def _chain(self, techniques: Sequence[Technique]) -> Spread:
        stages = [(t, r) for t, r in with_recovery(techniques) if not t.lossless]
        if not stages:
            return NOTHING
        parts = [self.stage(t, r) for t, r in stages]
        keys = stage_keys(techniques, self.info.blocks)
        mid = combined([part.loss for part in parts], self.metric == "perplexity")
        basis = "; ".join(dict.fromkeys(part.basis for part in parts))
        if len(parts) > 1:
            basis += "; losses added up"
        center, sure = self._moved(keys, self.scale.of(mid), [part.loss for part in parts])
        if sure < 1:
            basis = f"{len(self.own)} chains measured on this model; {basis}"
        low, high = self._claimed(mid, parts)
        share = min(part.share for part in parts)
        if share > 1 - MOSTLY and (between := self.learned.bounds(keys)) is not None:
            low, high = (share * m + (1 - share) * c for m, c in zip(between, (low, high), strict=True))
        below, middle, above = (self.scale.loss(center + distance * sure) for distance in (low, 0.0, high))
        return Spread(min(below, middle), middle, max(middle, above), basis)

    def _claimed(self, mid: float, parts: Sequence[StageLoss]) -> tuple[float, float]:
        """Distances on the scale by the spread of published figures: those of the stages add in squares."""
        down = math.sqrt(sum(max(p.loss - p.loss / p.factor, FLOOR) ** 2 for p in parts))
        up = math.sqrt(sum(max(p.loss * p.factor - p.loss, FLOOR) ** 2 for p in parts))
        center = self.scale.of(mid)
        return self.scale.of(max(0.0, mid - down)) - center, self.scale.of(mid + up) - center

    def _moved(self, keys: Sequence[StageKey], value: float, losses: Sequence[float]) -> tuple[float, float]:
        """The value moved toward this model's own chains, and the share of the usual doubt that is left."""
        if not self.own:
            return value, 1.0
        total, weight = 0.0, 0.0
        for outcome, residual in self._own_residuals:
            near = likeness(keys, losses, outcome.stages)
            total += near * residual
            weight += near
        return value + total / (weight + PRIOR), max(SUREST, math.sqrt(PRIOR / (weight + PRIOR)))

    @cached_property
    def _own_residuals(self) -> list[tuple[Outcome, float]]:
        """This model's own chains, and how far each lies from what is expected of it without them."""
        found = []
        for own in self.own:
            losses = [self._stage(t, r).loss for t, r in with_recovery(own.techniques) if not t.lossless]
            expected = combined(losses, self.metric == "perplexity")
            found.append((own, self.scale.of(own.loss) - self.scale.of(expected)))
        return found

    def interval(self, spread: Spread) -> Interval:
        """A spread as it is shown."""
        rounded = {name: round(getattr(spread, name), 3) for name in ("low", "mid", "high")}
        return Interval(**rounded, unit=self.unit, basis=spread.basis)


def likeness(keys: Sequence[StageKey], losses: Sequence[float], other: Sequence[StageKey]) -> float:
    """How much another chain on the same model tells of this one: the share of the loss in stages that both have."""
    total = sum(abs(loss) for loss in losses) or 1.0
    shared = 0.0
    for key, loss in zip(keys, losses, strict=True):
        match = next((o for o in other if o.curve == key.curve), None)
        if match is not None:
            off = (key.strength - match.strength) / NEAR_STRENGTH
            shared += abs(loss) / total * math.exp(-off * off / 2)
    extra = sum(all(o.curve != k.curve for k in keys) for o in other)
    return (shared * OTHER_STAGE**extra) ** 2

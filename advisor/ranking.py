"""Which chain is better: what the goal asks for, what it costs in quality, and rules where estimates cannot tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from advisor.exploration import Candidate, Hope
from advisor.facts import misses_of
from advisor.predict import Outlook, Predictor
from advisor.readiness import runnable
from advisor.request import Goal, Request
from advisor.verdicts import Verdicts
from knowledge.techniques.base import Need

# what a doubling is worth: (of compression, of speed); and what spending the whole quality budget costs
GAIN: dict[Goal, tuple[float, float]] = {
    "size": (1.0, 0.1),
    "latency": (0.1, 1.0),
    "throughput": (0.1, 1.0),
    "memory": (1.0, 0.1),
    "quality": (0.15, 0.15),
    "overall": (0.5, 0.5),
}
COST: dict[Goal, float] = {
    "size": 0.5,
    "latency": 0.5,
    "throughput": 0.5,
    "memory": 0.5,
    "quality": 2.0,
    "overall": 1.0,
}
STAGE_COST = 0.1  # every stage must pay for itself
TRAINING_COST = 0.15
DECISIVE = 4.0  # a preference of this weight needs no tie
CAN_RUN = 0.5  # as a preference: among equals, a chain that can be carried out today
NEARLY = 0.1  # a share of a limit
FAR = 4.0  # times the loss that may be spent: no chain so lossy is the nearest where none fits
HARMLESS = 0.02  # points or percent lost
LEAST_BUDGET = 0.1  # a budget of nothing still ranks what loses less


@dataclass(frozen=True)
class Ranked:
    """A candidate: where its score lies, what speaks for it, and what it misses as limit -> (required, estimated)."""

    candidate: Candidate
    low: float
    mid: float
    high: float
    preference: float
    decisive: bool  # a rule puts it first wherever it fits
    misses: dict[str, tuple[float, float]]
    overturned: int = 0  # better-scored chains that rules put behind it, because the estimates overlap

    @property
    def fits(self) -> bool:
        return not self.misses

    @property
    def harmless(self) -> bool:
        """Whether it is expected to lose nothing that could be told from noise."""
        return self.candidate.outlook.drop.mid <= HARMLESS

    @property
    def may_fit(self) -> bool:
        """Whether the hopeful end of the estimates meets the limits, or nearly."""
        drop = self.candidate.outlook.drop
        return all(
            drop.low <= required if limit == "quality" else abs(estimated / required - 1) <= NEARLY
            for limit, (required, estimated) in self.misses.items()
        )

    @property
    def shortfall(self) -> float:
        """How far the limits are missed."""
        return shortfall(self.misses)


def ready(techniques: Sequence[str]) -> float:
    """The preference for a chain that can be carried out today."""
    return CAN_RUN if runnable().issuperset(techniques) else 0.0


def shortfall(misses: Mapping[str, tuple[float, float]]) -> float:
    """How far limits are missed: one for each, and the doublings to it."""
    return sum(1 + abs(math.log2(max(e, 1e-9) / max(r, 1e-9))) for r, e in misses.values())


class Ranking:
    """Orders candidates for one request."""

    def __init__(self, request: Request, predictor: Predictor, verdicts: Verdicts) -> None:
        self.request, self.predictor, self.verdicts = request, predictor, verdicts
        self.goal = request.goal

    def score(self, outlook: Outlook, stages: int) -> float:
        """What a chain is worth by its middle estimates."""
        return self._score(outlook.compression, outlook.speedup, outlook.drop.mid) - STAGE_COST * stages

    def hope(self, more: Mapping[str, tuple[float, ...]]) -> Hope:
        """Losses that chains may have and still matter: to this budget, or to one that is `more` by its unit."""
        allowed = self.request.max_drop
        step = max(more[self.request.max_drop_unit or "pp"])
        return Hope(allowed, allowed + step, FAR * (allowed + step), lambda outlook: shortfall(self._misses(outlook)))

    def order(self, candidates: Sequence[Candidate]) -> list[Ranked]:
        """One candidate per sequence of techniques, best first; those that fit before those that may.

        Where nothing fits, all others, the nearest first. Where quality is all that was asked for, what loses nothing
        comes first.
        """
        best: dict[tuple[str, ...], Ranked] = {}
        for candidate in candidates:
            ranked = self._ranked(candidate)
            known = best.get(candidate.ids)
            if known is None or _better(ranked, known):
                best[candidate.ids] = ranked
        fitting = sorted((r for r in best.values() if r.fits), key=lambda r: -r.mid)
        missing = [r for r in best.values() if not r.fits and (r.may_fit or not fitting)]
        missing.sort(key=lambda r: (r.shortfall, -r.mid))
        decided = [r for r in fitting if r.decisive]
        ordered = [*decided, *_ties_broken([r for r in fitting if not r.decisive])]
        if self.harmless_first:
            ordered.sort(key=lambda r: not r.harmless)
        return [*ordered, *missing]

    @property
    def harmless_first(self) -> bool:
        """Whether quality is all that was asked for: then nothing is spent on gains that no limit demands."""
        return self.goal == "quality" and not self.request.limited

    def _score(self, compression: float, speedup: float, drop: float) -> float:
        size, speed = GAIN[self.goal]
        spent = drop / max(self.request.max_drop, LEAST_BUDGET)
        return size * math.log2(compression) + speed * math.log2(speedup) - COST[self.goal] * spent

    def _ranked(self, candidate: Candidate) -> Ranked:
        outlook = candidate.outlook
        effort = sum(STAGE_COST + (TRAINING_COST if Need.TRAINING in t.needs else 0) for t in candidate.techniques)
        drops = (outlook.drop.high, outlook.drop.mid, outlook.drop.low)
        low, mid, high = (
            self._score(outlook.compression, speedup, drop) - effort
            for speedup, drop in zip(self.predictor.speedups(outlook), drops, strict=True)
        )
        weights = self.verdicts.weights(candidate.ids, outlook.compression)
        decisive = max(weights, default=0.0) >= DECISIVE
        preference = sum(weights) + ready(candidate.ids)
        return Ranked(candidate, low, mid, high, preference, decisive, self._misses(outlook))

    def _misses(self, outlook: Outlook) -> dict[str, tuple[float, float]]:
        latency, memory = outlook.latency.total, outlook.memory_bytes
        misses = misses_of(self.request, self.predictor, outlook.bytes, latency, outlook.speedup, memory)
        if outlook.drop.mid > self.request.max_drop + 1e-9:
            misses["quality"] = (self.request.max_drop, outlook.drop.mid)
        return misses


def _better(new: Ranked, old: Ranked) -> bool:
    if new.fits != old.fits:
        return new.fits
    return new.mid > old.mid if new.fits else new.shortfall < old.shortfall


def _ties_broken(ranked: Sequence[Ranked]) -> list[Ranked]:
    """Groups whose scores overlap with that of their leader, each in the order of preference."""
    rest, done = list(ranked), []
    while rest:
        leader = rest[0]
        group = [r for r in rest if r.high >= leader.low]
        rest = [r for r in rest if r.high < leader.low]
        for chosen in sorted(group, key=lambda r: (-round(r.preference, 6), -r.mid)):
            ahead = sum(r.mid > chosen.mid and r.preference < chosen.preference for r in group)
            done.append(Ranked(**{**chosen.__dict__, "overturned": ahead}))
    return done

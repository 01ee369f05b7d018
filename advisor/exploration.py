"""Chains through the graph, explored best first.

Sizes do not add along a path: each state holds the layer table that its chain leads to, and is dropped only where
another one at the same node is nowhere worse.
"""

from __future__ import annotations

import heapq
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import networkx as nx

from advisor.graph import EXPORT, START
from advisor.predict import Outlook, Predictor, after
from advisor.verdicts import Verdicts
from knowledge.layers import LayerTable
from knowledge.techniques.base import Level, Need, Technique
from knowledge.techniques.catalog import CATALOG

MAX_STAGES = 4  # lossless ones not counted: distill, one cut, its recovery, quantize
MAX_OUTLOOKS = 100  # chains that are estimated at their usual settings, the most promising first,
MORE_OUTLOOKS = 60  # and where those were not all, the ones that compress most
REFINED = 6  # of the best chains get gentler and stronger settings tried

Costs = tuple[float, float, float, int, float]
Score = Callable[[Outlook, int], float]


@dataclass(frozen=True)
class Candidate:
    """A complete chain with its outlook."""

    techniques: tuple[Technique, ...]
    outlook: Outlook

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(t.id for t in self.techniques)


@dataclass(frozen=True)
class State:
    """A chain under way: where it stands and what it has led to."""

    node: str
    techniques: tuple[Technique, ...]
    layers: LayerTable
    outlook: Outlook
    rough: bool = False  # something must follow: only the tables of `layers` and `outlook` are its own

    def costs(self, verdicts: Verdicts) -> Costs:
        """What dominance compares: loss, bytes, latency, stages, and what rules say against it."""
        o = self.outlook
        favor = sum(verdicts.weights([t.id for t in self.techniques], o.compression))
        return o.drop.mid, o.bytes, o.latency.total, len(self.techniques), -favor


@dataclass(frozen=True)
class Hope:
    """Which losses are worth going on with: a chain only ever loses more."""

    allowed: float  # the loss that may be spent
    most: float  # loss beyond which a chain is not looked at, once another one fits
    ever: float  # nor if none does
    shortfall: Callable[[Outlook], float]  # how far a chain is from meeting every limit; 0: it does


@dataclass(frozen=True)
class Explored:
    """The chains worth comparing, and how many were looked at to find them."""

    candidates: tuple[Candidate, ...]
    estimated: int  # chains, whatever the settings of their stages
    complete: bool  # False: there are more of them than may be estimated


def explore(
    graph: nx.DiGraph, verdicts: Verdicts, predictor: Predictor, score: Score, hope: Hope | None = None
) -> Explored:
    """Every chain worth comparing, the most promising estimated first. `score(outlook, stages)`: larger is better.

    Where there are more than can be estimated, the rest of the time goes to those that shrink and speed up most,
    whatever they cost: limits may ask for that. The best are refined, a setting at a time.
    """
    found = Exploration(graph, verdicts, predictor, hope)
    complete = found.explore(score, MAX_OUTLOOKS) or found.explore(
        lambda outlook, stages: math.log2(outlook.compression * outlook.speedup), MORE_OUTLOOKS
    )
    estimated = found.estimated  # refining tries other settings of the same chains
    found.refine(score)
    return Explored(tuple(found.candidates), estimated, complete)


def counted(techniques: Sequence[Technique]) -> int:
    """Stages that count against MAX_STAGES."""
    return sum(not t.lossless for t in techniques)


@dataclass(frozen=True)
class Step:
    """One way to go on from a node, and what it is worth when nothing comes before it."""

    gain: float
    node: str
    technique: Technique


class Exploration:
    """Chains by their promise: what a chain is worth, and what its next step is worth on its own.

    Only the chain that is estimated next is ever built. `candidates` grow from one run to the next.
    """

    def __init__(self, graph: nx.DiGraph, verdicts: Verdicts, predictor: Predictor, hope: Hope | None = None) -> None:
        self.graph, self.verdicts, self.predictor = graph, verdicts, predictor
        self.hope, self.one_fits = hope, False
        self.begin = State(START, (), predictor.layers, predictor.baseline)
        self.candidates = [Candidate((), predictor.baseline)] if graph.has_edge(START, EXPORT) else []
        self.estimated = len(self.candidates)
        self.known: dict[tuple[Technique, ...], State | None] = {}  # None: not worth going on
        self.costs: dict[str, list[Costs]] = {}  # of the chains that reached a node
        self.usual: dict[str, tuple[Technique, ...]] = {}  # settings to explore with

    def explore(self, score: Score, outlooks: int) -> bool:
        """Estimate up to so many chains more; whether that was all there are."""
        most, order = len(self.known) + outlooks, itertools.count()
        steps = self._steps(self._worth(score))
        # (-expected, order, state, its promise, the ways on from it, which is next)
        frontier: list[tuple[float, int, State, float, list[Step], int]] = []

        def reach(state: State, promise: float, ways: list[Step], number: int = 0) -> None:
            if number < len(ways):
                expected = promise + ways[number].gain
                heapq.heappush(frontier, (-expected, next(order), state, promise, ways, number))

        reach(self.begin, score(self.begin.outlook, 0), steps(self.begin))
        while frontier and len(self.known) < most:
            expected, _, state, promise, ways, number = heapq.heappop(frontier)
            reach(state, promise, ways, number + 1)
            child = self._child(state, ways[number])
            if child is not None:
                ends = self.graph.has_edge(child.node, EXPORT)  # otherwise its worth shows with what must follow
                reach(child, score(child.outlook, len(child.techniques)) if ends else -expected, steps(child))
        return not frontier

    def refine(self, score: Score) -> None:
        """Try other settings for the best chains, a stage at a time, for as long as that makes them better."""

        def merit(candidate: Candidate) -> tuple[float, float]:
            missing = self.hope.shortfall(candidate.outlook) if self.hope is not None else 0.0
            return -missing, score(candidate.outlook, len(candidate.techniques))

        ranked = sorted(self.candidates, key=merit, reverse=True)  # those that fit, then the nearest
        fitting = sum(not merit(c)[0] for c in ranked)
        starts = (*ranked[:REFINED], *ranked[fitting : fitting + REFINED // 2])
        for start in dict.fromkeys(starts):
            best, better = start, True
            while better:
                others = [c for t in self._variants(best.techniques) if (c := self._followed(t)) is not None]
                found = max((best, *others), key=merit)
                best, better = found, found is not best

    def _variants(self, chain: tuple[Technique, ...]) -> Iterator[tuple[Technique, ...]]:
        """The chain with one stage at another of its settings."""
        for at, technique in enumerate(chain):
            for other in self.verdicts.settings[technique.id]:
                if other != technique:
                    yield (*chain[:at], other, *chain[at + 1 :])

    def _followed(self, chain: tuple[Technique, ...]) -> Candidate | None:
        """A chain estimated from the start; None where it is not worth going on with."""
        state: State | None = self.begin
        for technique in chain:
            if state is None:
                return None
            ways = self.graph.successors(state.node)
            node = next(n for n in ways if self.graph.nodes[n]["technique"] == technique.id)
            state = self._child(state, Step(0.0, node, technique))
        return None if state is None else Candidate(chain, state.outlook)

    def _usual(self, name: str) -> tuple[Technique, ...]:
        """The middle one of a technique's settings; the gentlest where that alone would cost more than there is."""
        if name not in self.usual:
            planned = sorted(self.verdicts.settings[name], key=lambda t: t.strength())
            middle = planned[len(planned) // 2]
            trained = Need.TRAINING in middle.needs or bool(self.verdicts.required_after(name))
            spent = (
                0.0 if middle.lossless or middle.phase is None else self.predictor.quality.stage(middle, trained).loss
            )
            gentle = self.hope is not None and spent > self.hope.allowed
            self.usual[name] = (planned[0] if gentle else middle,)
        return self.usual[name]

    def _worth(self, score: Score) -> dict[Technique, float]:
        """What each technique adds to the uncompressed model, with what must follow it."""
        base, found = score(self.begin.outlook, 0), {}
        for node in self.graph.successors(START):
            for technique in self._usual(node) if node != EXPORT else ():
                state = self._child(self.begin, Step(0.0, node, technique))
                while state is not None and not self.graph.has_edge(state.node, EXPORT):
                    ways = list(self.graph.successors(state.node))
                    if len(ways) != 1:  # a choice, not what must follow
                        break
                    state = self._child(state, Step(0.0, ways[0], *self._usual(self.graph.nodes[ways[0]]["technique"])))
                if state is not None:
                    found[technique] = score(state.outlook, len(state.techniques)) - base
        return found

    def _steps(self, worth: Mapping[Technique, float]) -> Callable[[State], list[Step]]:
        """The ways to go on from a state, the most promising first."""

        @cache
        def ways(start: str, full: bool) -> list[Step]:
            found = []
            for node in self.graph.successors(start):
                name = self.graph.nodes[node]["technique"]
                if node != EXPORT and (CATALOG[name].lossless or not full):
                    found += [Step(worth.get(t, 0.0), node, t) for t in self._usual(name)]
            return sorted(found, key=lambda step: -step.gain)

        return lambda state: ways(state.node, counted(state.techniques) >= MAX_STAGES)

    def _child(self, state: State, step: Step) -> State | None:
        """The state's chain with a technique added; None where it changes nothing or another chain is nowhere worse."""
        chain = (*state.techniques, step.technique)
        if chain not in self.known:
            child = self.known[chain] = self._built(state, step, chain)
            if child is not None and self.graph.has_edge(child.node, EXPORT):
                self.candidates.append(Candidate(chain, child.outlook))
                self.one_fits = self.one_fits or (self.hope is not None and not self.hope.shortfall(child.outlook))
        return self.known[chain]

    def _hopeless(self, chain: tuple[Technique, ...]) -> bool:
        """Whether even the hopeful end of a chain's loss is too much. A loss is estimated faster than a latency.

        What must still follow may win some of it back, so chains that cannot end here are given their chance.
        """
        last = chain[-1]
        if self.hope is None or (last.level is Level.MODEL and not last.lossless and Need.TRAINING not in last.needs):
            return False
        least = self.predictor.quality.chain(chain).low
        return least > (self.hope.most if self.one_fits else self.hope.ever)

    def _built(self, state: State, step: Step, chain: tuple[Technique, ...]) -> State | None:
        technique = step.technique
        if self._hopeless(chain):
            return None
        if state.techniques and technique.level is Level.MODEL and any(technique.refusals(state.layers)):
            return None  # an earlier stage left nothing for it to change
        solved = self.verdicts.students.get(technique) if not state.techniques else None
        layers, files = after(technique, state.layers, state.outlook.layers, solved)
        if not self.graph.has_edge(step.node, EXPORT):  # its figures show with what must follow
            return State(step.node, chain, layers, replace(state.outlook, layers=files), rough=True)
        if files is state.outlook.layers and not state.rough:  # the file stays as it is: only the loss can be new
            outlook = replace(state.outlook, drop=self.predictor.quality.chain(chain))
        else:
            outlook = self.predictor.outlook(chain, files)
        self.estimated += 1
        child = State(step.node, chain, layers, outlook)
        mine, others = child.costs(self.verdicts), self.costs.setdefault(step.node, [])
        if any(all(map(operator.le, other, mine)) for other in others):
            return None
        others.append(mine)
        return child

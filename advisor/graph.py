"""The graph of chains: techniques at their phases, edges that carry the rules behind them, explored best first.

    START → distill → layer_drop → finetune@layer_drop → int8_dynamic → EXPORT
      └────────────────┴──────────────────────────────────────┘   every forward edge that no rule forbids

A node is a technique at its phase, so that recovery can follow each lossy stage; phases rise along every edge, so the
graph has no circle and a chain has at most one technique of each phase. Sizes do not add along a path: each state holds
the layer table that its chain leads to, and is dropped only where another one at the same node is nowhere worse.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import networkx as nx

from advisor.predict import Outlook, Predictor, after
from advisor.rules import Verdicts
from knowledge.layers import LayerTable
from knowledge.techniques.base import Level, Technique
from knowledge.techniques.catalog import CATALOG

START, EXPORT = "START", "EXPORT"
MAX_STAGES = 4  # lossless ones not counted: distill, one cut, its recovery, quantize
MAX_STATES = 4000


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

    @property
    def costs(self) -> tuple[float, float, float, int]:
        """What dominance compares: loss, bytes, latency, stages."""
        o = self.outlook
        return o.drop.mid, o.bytes, o.latency.total, len(self.techniques)


def build_graph(verdicts: Verdicts) -> nx.DiGraph:
    """The DAG of every chain that the verdicts allow. Node: `technique`, `phase`. Edge: `rules`, the ids behind it."""
    graph = nx.DiGraph()
    graph.add_node(START, technique="", phase=0)
    staged = sorted((t for t in verdicts.allowed if CATALOG[t].phase is not None), key=lambda t: (_phase(t), t))
    leaves = {START: START}  # technique -> the node from which a chain goes on
    for name in staged:
        graph.add_node(name, technique=name, phase=_phase(name))
        leaves[name] = _with_followers(graph, verdicts, name)
    graph.add_node(EXPORT, technique="", phase=max((_phase(t) for t in staged), default=0) + 10)
    ordered: dict[tuple[str, str], list[str]] = {}
    for rule, first, then in verdicts.orders():
        ordered.setdefault((first, then), []).append(rule)
    favored: dict[str, list[str]] = {name: [] for name in staged}
    for rule_, about, weight in verdicts.preferences():
        for name in staged:
            if weight > 0 and about.covers(name):
                favored[name].append(rule_.id)
    for first in (START, *staged):
        graph.add_edge(leaves[first], EXPORT, rules=())
        for then in staged:
            rises = first == START or _phase(first) < _phase(then)
            if rises and not graph.has_node(f"{then}@{first}"):  # it follows anyway
                rules = dict.fromkeys((*ordered.get((first, then), ()), *favored[then]))
                graph.add_edge(leaves[first], then, rules=tuple(rules))
    return graph


def _phase(name: str) -> int:
    phase = CATALOG[name].phase
    assert phase is not None
    return int(phase)


def _with_followers(graph: nx.DiGraph, verdicts: Verdicts, name: str) -> str:
    """Add what must follow a technique, one after the other; the node from which a chain goes on."""
    last = name
    for follower, rules in verdicts.required_after(name).items():
        node = f"{follower}@{name}"
        graph.add_node(node, technique=follower, phase=graph.nodes[last]["phase"] + 1)
        graph.add_edge(last, node, rules=tuple(rules))
        last = node
    return last


def explore(
    graph: nx.DiGraph, verdicts: Verdicts, predictor: Predictor, score: Callable[[Outlook, int], float]
) -> list[Candidate]:
    """Every chain worth comparing, the most promising expanded first. `score(outlook, stages)`: larger is better."""
    begin = State(START, (), predictor.layers, predictor.baseline)
    order = itertools.count()
    frontier = [(-score(begin.outlook, 0), next(order), begin)]
    seen: dict[str, list[State]] = {}
    found: list[Candidate] = []
    expanded = 0
    while frontier and expanded < MAX_STATES:
        *_, state = heapq.heappop(frontier)
        if _beaten(state, seen.setdefault(state.node, [])):
            continue
        seen[state.node].append(state)
        expanded += 1
        for node in graph.successors(state.node):
            if node == EXPORT:
                found.append(Candidate(state.techniques, state.outlook))
            elif counted(state.techniques) < MAX_STAGES or CATALOG[graph.nodes[node]["technique"]].lossless:
                for child in _children(graph, verdicts, predictor, state, node):
                    heapq.heappush(frontier, (-score(child.outlook, len(child.techniques)), next(order), child))
    return found


def counted(techniques: Sequence[Technique]) -> int:
    """Stages that count against MAX_STAGES."""
    return sum(not t.lossless for t in techniques)


def _children(graph: nx.DiGraph, verdicts: Verdicts, predictor: Predictor, state: State, node: str) -> list[State]:
    """The state's chain with the node's technique added, once for each setting worth planning with."""
    name = graph.nodes[node]["technique"]
    children = []
    for technique in verdicts.settings[name]:
        if state.techniques and technique.level is Level.MODEL and any(technique.refusals(state.layers)):
            continue  # an earlier stage left nothing for it to change
        solved = verdicts.students.get(technique) if not state.techniques else None
        layers, files = after(technique, state.layers, state.outlook.layers, solved)
        chain = (*state.techniques, technique)
        if files is state.outlook.layers:  # the file stays as it is: only the loss can be new
            outlook = replace(state.outlook, drop=predictor.quality.chain(chain))
        else:
            outlook = predictor.outlook(chain, files)
        children.append(State(node, chain, layers, outlook))
    return children


def _beaten(state: State, others: Sequence[State]) -> bool:
    """Whether another chain that reached the same node is nowhere worse."""
    mine = state.costs
    return any(all(a <= b for a, b in zip(other.costs, mine, strict=True)) for other in others)

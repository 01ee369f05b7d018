"""The graph of chains: techniques at their phases, edges that carry the rules behind them.

    START → distill → layer_drop → finetune@layer_drop → int8_dynamic → EXPORT
      └────────────────┴──────────────────────────────────────┘   every forward edge that no rule forbids

A node is a technique at its phase, so that recovery can follow each lossy stage; phases rise along every edge, so the
graph has no circle and a chain has at most one technique of each phase.
"""

from __future__ import annotations

import networkx as nx

from advisor.verdicts import Verdicts
from knowledge.techniques.catalog import CATALOG

START, EXPORT = "START", "EXPORT"


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
    for first in (START, *staged):
        graph.add_edge(leaves[first], EXPORT, rules=())
        for then in staged:
            rises = first == START or _phase(first) < _phase(then)
            if rises and not graph.has_node(f"{then}@{first}"):  # it follows anyway
                graph.add_edge(leaves[first], then, rules=_behind(verdicts, first, then))
    return graph


def _behind(verdicts: Verdicts, first: str, then: str) -> tuple[str, ...]:
    """The rules behind an edge: those that order its ends, and those that prefer where it leads."""
    favored = verdicts.favored(then)
    ordering = verdicts.ordering(first, then) if first != START else []
    return tuple(dict.fromkeys((*ordering, *favored))) if ordering else favored  # shared: edges are many


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

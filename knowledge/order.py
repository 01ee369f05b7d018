"""Which techniques stand before which: by the phases that they declare and by rules. A circle is refused."""

from __future__ import annotations

import graphlib
import itertools
from collections.abc import Iterable, Mapping

from knowledge.satisfy import Term, alternatives, apart, joint
from knowledge.schema import Rule
from knowledge.techniques.base import Family
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError

Edge = tuple[str, str]  # this stands before that
FAMILIES = frozenset(family.value for family in Family)


def members(name: str) -> list[str]:
    """Technique ids behind a family name or a technique id; `distill`, which is both, means the family."""
    if name in FAMILIES:
        return [t for t, cls in CATALOG.items() if cls.family is Family(name)]
    return [name]


def check_order(rules: Iterable[Rule], origin: Mapping[str, str]) -> None:
    """Raise InputError when `before` rules that can fire together contradict each other, or the techniques' phases."""
    said: dict[Edge, list[Rule]] = {}
    for rule in rules:
        for order in (c.before for c in rule.then if c.before is not None):
            first = f"end of {order.first}" if order.first in FAMILIES else order.first
            then = f"start of {order.then}" if order.then in FAMILIES else order.then
            said.setdefault((first, then), []).append(rule)
    if not said:
        return
    found = _circle(_declared(), {edge: _any_of(rules) for edge, rules in said.items()})
    if found is not None:
        cycle, on_it, term = found
        blamed = [
            next(r for r in said[edge] if not all(apart(t, term) for t in alternatives(r.when))) for edge in on_it
        ]
        _refuse(cycle, list(dict.fromkeys(rule.id for rule in blamed)), origin)


def _refuse(cycle: list[str], blamed: list[str], origin: Mapping[str, str]) -> None:
    shown = " → ".join(dict.fromkeys(node.rpartition(" of ")[2] for node in cycle))
    first, *others = (f"{origin.get(f'rules/{rule}', 'rules')}: {rule}" for rule in blamed)
    problem = f"the order runs in a circle{', with ' if others else ''}{' and '.join(others)}"
    raise InputError(f"{first}: before", shown, problem, "turn it round, narrow its `when`, or drop the rule")


def _any_of(rules: Iterable[Rule]) -> tuple[Term, ...]:
    """The ways in which one of several rules fires."""
    return tuple(term for rule in rules for term in alternatives(rule.when))


def _declared() -> set[Edge]:
    """What holds whatever the rules: techniques inside their families, phases one after the other."""
    found: set[Edge] = set()
    phases = sorted({cls.phase for cls in CATALOG.values() if cls.phase is not None})
    for name, cls in CATALOG.items():
        found |= {(f"start of {cls.family.value}", name), (name, f"end of {cls.family.value}")}
        if cls.phase is not None:
            found |= {(f"phase {cls.phase.name} begins", name), (name, f"phase {cls.phase.name} is over")}
    for before, after in itertools.pairwise(phases):
        found.add((f"phase {before.name} is over", f"phase {after.name} begins"))
    return found


def _circle(declared: set[Edge], said: Mapping[Edge, tuple[Term, ...]]) -> tuple[list[str], list[Edge], Term] | None:
    """A circle, the edges of rules on it, and facts under which they all fire; None where there is none.

    Where the rules on a circle never fire together, one of them does not count: each is left out in turn.
    """
    after: dict[str, set[str]] = {}
    for first, then in (*declared, *said):
        after.setdefault(then, set()).add(first)
    try:
        graphlib.TopologicalSorter(after).prepare()
        return None
    except graphlib.CycleError as error:
        cycle: list[str] = error.args[1]
    on_it = [edge for edge in itertools.pairwise(cycle) if edge in said]
    term = next(joint([said[edge] for edge in on_it]), None)
    if term is not None:
        return cycle, on_it, term
    return next((found for edge in on_it if (found := _circle(declared, _without(said, edge))) is not None), None)


def _without(said: Mapping[Edge, tuple[Term, ...]], gone: Edge) -> dict[Edge, tuple[Term, ...]]:
    return {edge: terms for edge, terms in said.items() if edge != gone}

"""What follows from the facts of a request: refusals, preferences, orders, requirements and settings."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from knowledge.conditions import Facts, fill
from knowledge.layers import LayerTable
from knowledge.order import members
from knowledge.schema import Rule, Selector, Weighted
from knowledge.techniques.base import Choices, Family, Range, Technique
from knowledge.techniques.catalog import CATALOG
from knowledge.values import Value

PASSING = (Family.RECOVER, Family.FUSE)  # families that do not count in what kind of chain it is


class Refused(Value):
    """A technique that is not proposed: by which rule, why, who says so, and what would help."""

    technique: str
    rule: str
    text: str
    source: str
    remedy: str = ""


@dataclass(frozen=True)
class Verdicts:
    """What follows from one request's facts."""

    facts: Facts
    fired: tuple[Rule, ...]
    refused: tuple[Refused, ...] = ()
    settings: dict[str, tuple[Technique, ...]] = field(
        default_factory=dict
    )  # technique -> parameters worth planning with
    ranges: dict[str, dict[str, Range | Choices]] = field(default_factory=dict)  # narrowed by rules
    students: dict[Technique, LayerTable] = field(default_factory=dict)  # solved once: tables of the students

    @property
    def allowed(self) -> tuple[str, ...]:
        """Techniques that chains may use."""
        return tuple(self.settings)

    def preferences(self) -> Iterable[tuple[Rule, Weighted, float]]:
        """(rule, what it is about, signed weight) of everything preferred or avoided."""
        for rule in self.fired:
            for conclusion in rule.then:
                if conclusion.prefer is not None:
                    yield rule, conclusion.prefer, conclusion.prefer.weight
                if conclusion.avoid is not None:
                    yield rule, conclusion.avoid, -conclusion.avoid.weight

    @cached_property
    def _weighed(self) -> tuple[list[float], list[tuple[int, Weighted]], dict[str, list[int]]]:
        """Signed weights, those that are about chains, and for each technique those that are about it."""
        weights, chains, own = [], [], defaultdict(list)
        for number, (_, about, weight) in enumerate(self.preferences()):
            weights.append(weight)
            if about.chain is not None or about.compression is not None:
                chains.append((number, about))
            for name in about.techniques():
                own[name].append(number)
        return weights, chains, own

    def weights(self, techniques: Sequence[str], compression: float) -> list[float]:
        """The signed weights of everything preferred or avoided that concerns a chain."""
        weights, chains, own = self._weighed
        concerned = {number for name in techniques for number in own.get(name, ())}
        concerned |= {number for number, about in chains if concerns(about, techniques, compression)}
        return [weights[number] for number in sorted(concerned)]

    def favored(self, technique: str) -> tuple[str, ...]:
        """The rules that prefer a technique."""
        return self._favored.get(technique, ())

    @cached_property
    def _favored(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, dict[str, None]] = defaultdict(dict)
        for rule, about, weight in self.preferences():
            for name in about.techniques() if weight > 0 else ():
                found[name][rule.id] = None
        return {name: tuple(rules) for name, rules in found.items()}

    def required_after(self, technique: str) -> dict[str, list[str]]:
        """Techniques that must follow this one, with the rules that say so."""
        return self._required.get(technique, {})

    @cached_property
    def _required(self) -> dict[str, dict[str, list[str]]]:
        found: dict[str, dict[str, list[str]]] = {}
        for rule in self.fired:
            for needed in (c.require for c in rule.then if c.require is not None):
                for name in needed.after.techniques() if needed.technique in self.settings else ():
                    found.setdefault(name, {}).setdefault(needed.technique, []).append(rule.id)
        return found

    def ordering(self, first: str, then: str) -> list[str]:
        """The rules that put one technique before another."""
        firsts, thens = ((name, CATALOG[name].family.value) for name in (first, then))
        return [rule for pair in itertools.product(firsts, thens) for rule in self._ordering.get(pair, ())]

    @cached_property
    def _ordering(self) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = {}
        for rule in self.fired:
            for order in (c.before for c in rule.then if c.before is not None):
                found.setdefault((order.first, order.then), []).append(rule.id)
        return found

    def orders(self) -> Iterable[tuple[str, str, str]]:
        """(rule, first, then) for every pair of techniques that a rule orders."""
        for rule in self.fired:
            for order in (c.before for c in rule.then if c.before is not None):
                for first in members(order.first):
                    for then in members(order.then):
                        yield rule.id, first, then

    def warnings(self, techniques: Sequence[str], compression: float) -> list[str]:
        """What rules warn of for a chain, each sentence once."""
        found = []
        for rule in self.fired:
            for about in (c.warn for c in rule.then if c.warn is not None):
                if about == "all" or (isinstance(about, Selector) and concerns(about, techniques, compression)):
                    found.append(fill(rule.text, self.facts))
        return list(dict.fromkeys(found))


def concerns(about: Selector, techniques: Sequence[str], compression: float) -> bool:
    """Whether a chain of these techniques is what a selector means."""
    if about.chain is not None:
        kinds = [CATALOG[t].family for t in techniques if CATALOG[t].family not in PASSING]
        return sorted(kinds) == sorted(about.chain)
    if about.compression is not None:
        return about.compression[0] <= compression <= about.compression[1]
    return any(about.covers(t) for t in techniques)

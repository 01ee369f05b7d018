"""Whether conditions can hold, alone or together, and whether one holds wherever another does.

A condition becomes its alternatives: mappings from facts to the values that pass every test on them. Numbers are unions
of intervals, names are a set or everything but a set, lists are what they must hold and must not. Over these values the
answers are exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from knowledge.conditions import VOCABULARY, tests

# an end is (value, side): side 0 is the value itself, 1 begins right above it, -1 ends right below it
End = tuple[float, int]
FLOOR, CEILING = (-math.inf, 0), (math.inf, 0)


@dataclass(frozen=True)
class Numbers:
    """A union of intervals, in order and apart."""

    spans: tuple[tuple[End, End], ...]

    def meet(self, other: Numbers) -> Numbers | None:
        found = tuple(
            (low, high)
            for a, b in itertools.product(self.spans, other.spans)
            if (low := max(a[0], b[0])) <= (high := min(a[1], b[1]))
        )
        return Numbers(found) if found else None

    def outside(self) -> Iterator[Numbers]:
        """What is not in it, in parts."""
        low, gaps = FLOOR, []
        for span in self.spans:
            gaps.append((low, (span[0][0], span[0][1] - 1)))
            low = (span[1][0], span[1][1] + 1)
        found = tuple(gap for gap in (*gaps, (low, CEILING)) if gap[0] <= gap[1])
        if found:
            yield Numbers(found)


@dataclass(frozen=True)
class Names:
    """A set of values, or all but a set."""

    values: frozenset[Any]
    but: bool = False

    def meet(self, other: Names) -> Names | None:
        if self.but and other.but:
            return Names(self.values | other.values, but=True)
        if not self.but and not other.but:
            left = self.values & other.values
        else:
            left = self.values - other.values if other.but else other.values - self.values
        return Names(left) if left else None

    def outside(self) -> Iterator[Names]:
        yield Names(self.values, not self.but)


@dataclass(frozen=True)
class Held:
    """What a list holds: one of each of these sets at least, and none of `banned`."""

    one_of: frozenset[frozenset[str]] = frozenset()
    banned: frozenset[str] = frozenset()

    def meet(self, other: Held) -> Held | None:
        one_of, banned = self.one_of | other.one_of, self.banned | other.banned
        return Held(one_of, banned) if all(wanted - banned for wanted in one_of) else None

    def outside(self) -> Iterator[Held]:
        for wanted in self.one_of:
            yield Held(banned=wanted)
        for name in self.banned:
            yield Held(one_of=frozenset({frozenset({name})}))


@dataclass(frozen=True)
class Unknown:
    """A fact without a value: no test on it passes."""

    def meet(self, other: Unknown) -> Unknown | None:
        return self

    def outside(self) -> Iterator[Unknown]:
        yield from ()


Domain = Numbers | Names | Held | Unknown
Term = Mapping[str, Domain]  # every fact in its domain
UNKNOWN = Unknown()


def alternatives(when: Mapping[str, Any]) -> tuple[Term, ...]:
    """The ways in which a checked condition can hold; none where it cannot.

    >>> alternatives({"max_drop_pp": {"gt": 5, "lt": 2}})
    ()
    >>> len(alternatives({"arch": "cnn", "any": [{"goal": "size"}, {"max_drop_pp": {"lt": 0}}, {"limits": True}]}))
    2
    """
    found: list[Term] = [{}]
    for name, wanted in when.items():
        if name == "any":
            choices = [term for one in wanted for term in alternatives(one)]
        else:
            domain: Domain | None = everything(name)
            for test, value in tests(wanted):
                domain = meet(domain, _domain(name, test, value)) if domain is not None else None
            choices = [{name: domain}] if domain is not None else []
        found = [both for a, b in itertools.product(found, choices) if (both := met(a, b)) is not None]
    return tuple(found)


def everything(name: str) -> Domain:
    """All values that a fact can have where it is known."""
    fact = VOCABULARY[name]
    if fact.kind == "number":  # counts, sizes and losses to spend; a share has an upper end too
        return Numbers((((0.0, 0), (1.0, 0) if name.endswith("_share") else CEILING),))
    if fact.kind == "list":
        return Held()
    if fact.kind == "flag":
        return Names(frozenset({True, False}))
    return Names(frozenset(fact.values)) if fact.values else Names(frozenset(), but=True)


def _domain(name: str, test: str, value: Any) -> Domain:
    """The values that pass a test."""
    given = value if isinstance(value, list) else [value]
    kind, negative = VOCABULARY[name].kind, test in ("not", "ne")
    if kind == "list":
        return Held(banned=frozenset(given)) if negative else Held(one_of=frozenset({frozenset(given)}))
    if kind != "number":
        return Names(frozenset(given), but=negative)
    if test in ("lt", "le"):
        return Numbers(((FLOOR, (value, -1 if test == "lt" else 0)),))
    if test in ("gt", "ge"):
        return Numbers((((value, 1 if test == "gt" else 0), CEILING),))
    points = Numbers(tuple(((v, 0), (v, 0)) for v in sorted(set(given))))
    return next(points.outside()) if negative else points


def meet(a: Domain, b: Domain) -> Domain | None:
    """The values in both domains of one fact; None where there are none."""
    return a.meet(b) if type(a) is type(b) else None  # type: ignore[arg-type]  # the same class on both sides


def met(a: Term, b: Term) -> Term | None:
    """Both terms as one; None where they exclude each other."""
    both = dict(a)
    for name, domain in b.items():
        mine = both.get(name)
        left = domain if mine is None else meet(mine, domain)
        if left is None:
            return None
        both[name] = left
    return both


def apart(a: Term, b: Term) -> bool:
    """Whether two terms exclude each other."""
    return any(name in b and meet(domain, b[name]) is None for name, domain in a.items())


def joint(conditions: Sequence[Sequence[Term]]) -> Iterator[Term]:
    """The ways in which several conditions, each given by its alternatives, hold together."""
    if not conditions:
        yield {}
        return
    for rest in joint(conditions[1:]):
        yield from (both for term in conditions[0] if (both := met(term, rest)) is not None)


def together(*conditions: Sequence[Term]) -> bool:
    """Whether conditions, each given by its alternatives, can hold together."""
    return next(joint(conditions), None) is not None


def implies(one: Sequence[Term], other: Sequence[Term]) -> bool:
    """Whether the second condition holds wherever the first does."""
    return all(_covered(term, other) for term in one)


def _covered(term: Term, others: Sequence[Term]) -> bool:
    """Whether one of `others` holds wherever `term` does: nothing may be left once each is taken away."""
    if not others:
        return False
    first, rest = others[0], others[1:]
    for name, domain in first.items():
        mine = term.get(name)
        if isinstance(mine, Unknown):
            return _covered(term, rest)
        if mine is None and not _covered({**term, name: UNKNOWN}, rest):
            return False
        known = everything(name) if mine is None else mine
        for part in domain.outside():
            left = meet(known, part)
            if left is not None and not _covered({**term, name: left}, rest):
                return False
    return True

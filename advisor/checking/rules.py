"""Rules that cannot work: that never fire, conclude nothing, or contradict another one for the same request.

Overlap is no contradiction by itself. What one rule prefers and another avoids is weighed, and a refusal that takes
away what another rule prefers is how exceptions are written: it is a fault only where the preference never counts, and
a note where the preferring rule does not look at what the refusal rests on. Faults are: requiring what is refused for
the same request; fixing one parameter at two values, or outside the range that another rule leaves; two starting values
where only the order of the files decides; requiring a technique behind one that it must precede.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from advisor.checking.findings import Finding
from advisor.checking.possible import Situation, Table, apart_from, families_of, overlap, request_tables, target_table
from knowledge.conditions import reads
from knowledge.load import Knowledge
from knowledge.satisfy import implies
from knowledge.schema import Requirement, Selector, Setting
from knowledge.techniques.catalog import CATALOG


class RuleCheck:
    """The rules of one knowledge, indexed by what they conclude about each technique."""

    def __init__(self, knowledge: Knowledge, known: Sequence[Situation]) -> None:
        self.knowledge, self.known = knowledge, known
        self.tables: tuple[Table, ...] = request_tables(knowledge)
        self.covered: dict[Selector, tuple[str, ...]] = {}
        self.refusals: dict[str, list[Situation]] = defaultdict(list)  # technique -> rules that refuse it
        self.requirements: list[tuple[Situation, Requirement]] = []
        self.settings: dict[tuple[str, str], list[tuple[Situation, Setting]]] = defaultdict(list)
        self.orders: dict[str, list[tuple[Situation, str]]] = defaultdict(list)  # first -> rules, and what comes then
        for one in known:
            if one.terms:
                self._index(one)

    def _index(self, one: Situation) -> None:
        for conclusion in one.rule.then:
            if conclusion.refuse is not None:
                for name in self.of(conclusion.refuse):
                    if not self.refusals[name] or self.refusals[name][-1] is not one:
                        self.refusals[name].append(one)
            if conclusion.require is not None:
                self.requirements.append((one, conclusion.require))
            if conclusion.before is not None:
                self.orders[conclusion.before.first].append((one, conclusion.before.then))
            if conclusion.set is not None:
                self.settings[conclusion.set.technique, conclusion.set.param].append((one, conclusion.set))

    def of(self, about: Selector) -> tuple[str, ...]:
        """The techniques that a selector means."""
        if about not in self.covered:
            self.covered[about] = tuple(name for name in CATALOG if about.covers(name))
        return self.covered[about]

    def findings(self) -> Iterator[Finding]:
        """Everything that is wrong with rules, and what is worth knowing."""
        yield from self.never()
        yield from self.without_effect()
        yield from self.required_and_refused()
        yield from self.required_and_before()
        yield from self.set_twice()
        yield from self.said_twice()

    # -- one rule ----------------------------------------------------------------------------------

    def never(self) -> Iterator[Finding]:
        """Conditions that contradict themselves, or ask for what never goes together."""
        targets = target_table(self.knowledge.targets)
        for one in self.known:
            if not one.terms:
                text = "no request can meet its condition"
                yield _about(one, "never-fires", text, "two of its tests exclude each other: drop or mend one")
            elif all(apart_from(term, targets) for term in one.terms):
                text = "no known target meets its condition; one of the user's own may"
                yield _about(one, "target", text, note=True)

    def without_effect(self) -> Iterator[Finding]:
        """Conclusions about techniques that never apply where the rule fires, or are always refused there."""
        for one in self.known:
            families = families_of(one)
            for conclusion in one.rule.then:
                for kind in ("prefer", "avoid", "warn", "set", "require"):
                    names = self._meant(getattr(conclusion, kind))
                    if not one.terms or names is None:
                        continue
                    apply = [name for name in names if families & CATALOG[name].architectures]
                    if not apply:
                        text = f"{kind}: no technique that it is about applies to {' or '.join(sorted(families))}"
                        yield _about(one, "no-effect", text, "drop the conclusion, or widen the condition")
                    elif kind == "prefer":
                        yield from self._refused_anyway(one, apply)

    def _meant(self, about: Any) -> tuple[str, ...] | None:
        """The techniques that a part of a conclusion is about; None where it is about chains, or nothing."""
        if isinstance(about, Setting):
            return (about.technique,)
        if isinstance(about, Requirement):
            return self._meant(about.after)
        if not isinstance(about, Selector) or about.chain is not None or about.compression is not None:
            return None
        return self.of(about)

    def _refused_anyway(self, one: Situation, names: Sequence[str]) -> Iterator[Finding]:
        """A preference that never counts, or that is made without a look at what refuses it."""
        always = {name: next((r for r in self.refusals[name] if implies(one.terms, r.terms)), None) for name in names}
        if all(refusing is not None for refusing in always.values()):
            others = dict.fromkeys(r.rule.id for r in always.values() if r is not None)
            text = f"prefers {', '.join(names)}, which is refused wherever it fires"
            yield _about(one, "no-effect", text, "narrow one of the two conditions", others)
        elif len(names) == 1:
            blind = [r for r in self.refusals[names[0]] if not reads(r.rule.when) <= reads(one.rule.when)]
            others = dict.fromkeys(r.rule.id for r in blind if overlap(one, r, self.tables))
            if others:
                text = f"prefers {names[0]} without a look at what {', '.join(others)} may refuse it for"
                yield _about(one, "no-effect", text, others=others, note=True)

    # -- two rules ---------------------------------------------------------------------------------

    def required_and_refused(self) -> Iterator[Finding]:
        """A technique that must follow another one, refused where that other one is not."""
        clashes: dict[tuple[str, str, str], list[str]] = {}
        for one, needed in self.requirements:
            for other in self.refusals[needed.technique]:
                refused = {n for c in other.rule.then if c.refuse is not None for n in self.of(c.refuse)}
                left = [name for name in self.of(needed.after) if name not in refused]
                if left and other is not one and overlap(one, other, self.tables):
                    clashes.setdefault((one.rule.id, needed.technique, other.rule.id), []).extend(left)
        places = {one.rule.id: one for one in self.known}
        for (rule, technique, other_rule), left in clashes.items():
            text = f"requires {technique} after {', '.join(left)} where {other_rule} refuses it"
            remedy = f"narrow its condition to where {technique} is allowed"
            yield _about(places[rule], "contradiction", text, remedy, [other_rule])

    def required_and_before(self) -> Iterator[Finding]:
        """A technique that must follow another one and must stand before it."""
        for one, needed in self.requirements:
            ends = set(self.of(needed.after)) | {CATALOG[name].family.value for name in self.of(needed.after)}
            for name in (needed.technique, CATALOG[needed.technique].family.value):
                for other, then in self.orders[name]:
                    if then in ends and overlap(one, other, self.tables):
                        text = f"requires {needed.technique} after {then}; {other.rule.id} puts it before"
                        yield _about(one, "contradiction", text, "turn one of them round", [other.rule.id])

    def set_twice(self) -> Iterator[Finding]:
        """One parameter with two values; between folders the later one is meant to win."""
        for (technique, param), said in self.settings.items():
            for (one, first), (other, then) in itertools.combinations(said, 2):
                if one.layer != other.layer or one.rule.id == other.rule.id:
                    continue
                problem = _conflict(first, then)
                if not problem or not overlap(one, other, self.tables):
                    continue
                if problem == "start" and implies(other.terms, one.terms):
                    continue  # the later one is the exception, and the later one wins
                text = (
                    f"{technique}.{param}: {_told(first)}, but {other.rule.id} says {_told(then)} for the same request"
                )
                if problem == "start":
                    text += ", and only the order of the files decides"
                yield _about(one, "contradiction", text, "let a fact decide: narrow one condition", [other.rule.id])

    def said_twice(self) -> Iterator[Finding]:
        """Rules with the same condition and the same conclusions."""
        seen: dict[str, Situation] = {}
        for one in self.known:
            said = one.rule.model_dump(mode="json", include={"when", "then"}, exclude_defaults=True)
            key = json.dumps(said, sort_keys=True)
            if key in seen:
                yield _about(
                    one, "duplicate", f"says what {seen[key].rule.id} says", others=[seen[key].rule.id], note=True
                )
            seen.setdefault(key, one)


def _about(one: Situation, kind: Any, text: str, remedy: str = "", others: Any = (), note: bool = False) -> Finding:
    return Finding(
        kind=kind, id=one.rule.id, place=one.place, text=text, remedy=remedy, others=tuple(others), note=note
    )


def _conflict(one: Setting, other: Setting) -> str:
    """What two settings of one parameter disagree on; empty where both can be followed."""
    for first, then in ((one, other), (other, one)):
        if first.value is not None and then.value is None and _outside(first.value, then):
            return "range"
    if one.value is not None and other.value is not None:
        return "value" if one.value != other.value else ""
    ends = [(s.low, s.high) for s in (one, other)]
    if all(
        high is None or low is None or low <= high for low, high in ((ends[0][0], ends[1][1]), (ends[1][0], ends[0][1]))
    ):
        differ = one.start is not None and other.start is not None and one.start != other.start
        return "start" if differ and one.value is None and other.value is None else ""
    return "range"


def _outside(value: Any, setting: Setting) -> bool:
    return isinstance(value, int | float) and (
        (setting.low is not None and value < setting.low) or (setting.high is not None and value > setting.high)
    )


def _told(setting: Setting) -> str:
    given = {name: getattr(setting, name) for name in ("value", "start", "low", "high")}
    return ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)

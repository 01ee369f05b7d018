"""Checks that the rule base makes: what it refuses, advises against, requires, fixes and prefers for this plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from advisor.lint.case import Case, Step
from advisor.lint.findings import Finding, Level, Patch, Path, place
from advisor.ranking import DECISIVE
from advisor.readiness import NOT_YET, runnable
from advisor.reasons import objects
from advisor.verdicts import Refused, concerns
from knowledge.conditions import fill
from knowledge.schema import Rule, Selector, Setting, Weighted
from knowledge.techniques.base import Family
from knowledge.techniques.catalog import CATALOG

STRONG = 1.0  # a preference of this weight is more than taste
COMPARE = "let `advisor search` compare it with the chains it recommends"
JUDGE = "judge the file by what `advisor run` measures"


def refused(case: Case) -> Iterator[Finding]:
    """Stages that a rule refuses for this request: another technique where the same rule names one, or none."""
    by_rule = refused_by_rule(case)
    for step in case.steps:
        no = by_rule.get(step.technique.id)
        if no is None:
            continue
        rule, at = case.knowledge.rules[no.rule], ("stages", step.number)
        other = _instead(case, rule, step)
        patch, fix = Patch(action="drop", at=at, value=no.technique), "leave the stage out"
        if other is not None:
            patch = Patch(action="set", at=at, value={"technique": other, "params": planned(case, other)})
            fix = f"use {other}"
        yield from_rule(case, rule, "error", at, f"{step.technique.id} is refused here", no.remedy or fix, patch)


def refused_by_rule(case: Case) -> dict[str, Refused]:
    """What rules refuse, by technique; what techniques refuse themselves is seen at their own stages."""
    return {no.technique: no for no in case.verdicts.refused if no.rule in case.knowledge.rules}


def _instead(case: Case, rule: Rule, step: Step) -> str | None:
    """A technique of the same phase that the refusing rule prefers, where it is the only one."""
    named = {c.prefer.technique for c in rule.then if c.prefer is not None and c.prefer.technique}
    allowed = [t for t in sorted(named) if t in case.verdicts.settings and t in runnable()]
    fitting = [t for t in allowed if CATALOG[t].phase == step.technique.phase]
    return fitting[0] if len(fitting) == 1 else None


def advised_against(case: Case) -> Iterator[Finding]:
    """Stages, or the whole chain, that a rule advises against and not at the same time for."""
    compression = case.outlook.compression
    for rule in case.verdicts.fired:
        for about in (c.avoid for c in rule.then if c.avoid is not None):
            if objects(rule, case.ids, compression) and concerns(about, case.ids, compression):
                level: Level = "warning" if about.weight >= STRONG else "note"
                for at, name in _subjects(case, about):
                    fix = _remedy(case, rule, COMPARE)
                    yield from_rule(case, rule, level, at, f"{name} is advised against here", fix)


def warned(case: Case) -> Iterator[Finding]:
    """What rules want known of the stages, or of every plan for such a request."""
    for rule in case.verdicts.fired:
        for about in (c.warn for c in rule.then if c.warn is not None):
            if about == "all":
                yield from_rule(case, rule, "note", (), "true of every chain here", _remedy(case, rule, JUDGE))
            elif not isinstance(about, str) and concerns(about, case.ids, case.outlook.compression):
                for at, name in _subjects(case, about):
                    yield from_rule(case, rule, "note", at, f"{name}, with a caution", _remedy(case, rule, JUDGE))


def warns_of(rule: Rule, technique: str) -> bool:
    """Whether a rule warns of this technique by name, family or need."""
    return any(isinstance(c.warn, Selector) and c.warn.covers(technique) for c in rule.then)


def _remedy(case: Case, rule: Rule, otherwise: str) -> str:
    return fill(rule.remedy, case.verdicts.facts) or otherwise


def _subjects(case: Case, about: Any) -> list[tuple[Path, str]]:
    """(place, name) of the stages that a selector means; of the chain where it means chains."""
    if about.chain is not None or about.compression is not None:
        return [(("stages",), " + ".join(case.ids) or "doing nothing")]
    found = [s for s in case.steps if not s.refusals and about.covers(s.technique.id)]
    return [(("stages", step.number), step.technique.id) for step in found]


def settings(case: Case) -> Iterator[Finding]:
    """Parameters that a rule fixes or narrows, and that stand elsewhere; a start that was overlooked is a note."""
    fixed = fixed_values(case)
    for rule in case.verdicts.fired:
        for setting in (c.set for c in rule.then if c.set is not None):
            if setting.value is None and (setting.technique, setting.param) in fixed:
                continue  # what is fixed has no start
            for step in case.steps:
                if step.technique.id == setting.technique and not step.refusals:
                    yield from _setting(case, rule, setting, step)


def fixed_values(case: Case) -> dict[tuple[str, str], Any]:
    """(technique, parameter) -> the value that a rule fixes it at."""
    said = [c.set for rule in case.verdicts.fired for c in rule.then if c.set is not None]
    return {(s.technique, s.param): s.value for s in said if s.value is not None}


def _setting(case: Case, rule: Rule, setting: Setting, step: Step) -> Iterator[Finding]:
    value = getattr(step.technique, setting.param)
    at: Path = ("stages", step.number, "params", setting.param)
    observed = f"{step.technique.id}: {setting.param} is {_shown(value)}"
    if setting.value is not None and value != setting.value:
        patch = Patch(action="set", at=at, value=setting.value)
        yield from_rule(case, rule, "warning", at, observed, f"set it to {_shown(setting.value)}", patch)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _bounded(case, rule, setting, step, value)
    if setting.start is None or value == setting.start:
        return
    if isinstance(value, bool):  # a switch has two sides, and the rule names one
        patch = Patch(action="set", at=at, value=setting.start)
        yield from_rule(case, rule, "warning", at, observed, f"set it to {_shown(setting.start)}", patch)
    elif value == type(step.technique).model_fields[setting.param].default:  # nobody has chosen it
        yield from_rule(case, rule, "note", at, observed, f"start from {_shown(setting.start)}")


def _bounded(case: Case, rule: Rule, setting: Setting, step: Step, value: float) -> Iterator[Finding]:
    """A number outside the bounds that a rule draws."""
    low = value if setting.low is None else setting.low
    nearest = min(max(value, low), value if setting.high is None else setting.high)
    if nearest != value:
        at: Path = ("stages", step.number, "params", setting.param)
        observed = f"{step.technique.id}: {setting.param} is {_shown(value)}"
        fix = f"take {'at most' if nearest < value else 'at least'} {nearest:g}"
        yield from_rule(case, rule, "warning", at, observed, fix, Patch(action="set", at=at, value=nearest))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def required(case: Case) -> Iterator[Finding]:
    """Stages after which a rule requires another one that never comes."""
    ids = [(step.number, step.technique.id) for step in case.steps if not step.refusals]
    for position, (number, name) in enumerate(ids):
        for needed, rules in case.verdicts.required_after(name).items():
            if any(later == needed for _, later in ids[position + 1 :]):
                continue
            recovery = CATALOG[needed].family is Family.RECOVER
            stage = {"technique": needed, "params": planned(case, needed)}
            patch = Patch(action="insert", at=("stages", number), value=stage) if recovery else None
            rule = case.knowledge.rules[rules[0]]
            observed = f"{name} without {needed} after it"
            level: Level = "warning" if recovery else "note"
            yield from_rule(case, rule, level, ("stages", number), observed, f"put {needed} behind it", patch)


def better_sibling(case: Case) -> Iterator[Finding]:
    """A technique for which rules prefer another one that does the same to the model."""
    weight: dict[str, float] = dict.fromkeys(CATALOG, 0.0)
    for _, about, signed in case.verdicts.preferences():
        for name in weight:
            weight[name] += signed if about.covers(name) else 0.0
    for step in case.steps:
        cls = type(step.technique)
        siblings = [
            n for n in case.verdicts.settings if CATALOG[n].phase == cls.phase and CATALOG[n].family is cls.family
        ]
        best = max(siblings, key=weight.__getitem__, default=cls.id)
        if step.refusals or cls.id not in case.verdicts.settings or weight[best] <= weight[cls.id]:
            continue
        rule = _decider(case, best, cls.id)
        if rule is not None and best not in case.ids:
            observed = f"{cls.id} where the rules prefer {best}"
            yield from_rule(case, rule, "note", ("stages", step.number), observed, f"compare it with {spoken(best)}")


def _decider(case: Case, best: str, other: str) -> Rule | None:
    """The rule that weighs most for `best` and not for `other`, or against `other` alone."""

    def share(about: Weighted, signed: float) -> float:
        return signed * (about.covers(best) - about.covers(other))

    weighed = [(share(about, signed), rule) for rule, about, signed in case.verdicts.preferences()]
    return max((pair for pair in weighed if pair[0] > 0), key=lambda pair: pair[0], default=(0.0, None))[1]


def another_chain(case: Case) -> Iterator[Finding]:
    """A rule that decides alone for another chain: above all that the model fits as it is."""
    for rule, about, signed in case.verdicts.preferences():
        if signed >= DECISIVE and about.chain is not None and not concerns(about, case.ids, case.outlook.compression):
            kinds = " and ".join(about.chain) or "nothing"
            observed = f"{' + '.join(case.ids) or 'doing nothing'} where {kinds} would do"
            yield from_rule(case, rule, "note", ("stages",), observed, "see what `advisor recommend` puts first")


def planned(case: Case, technique: str) -> dict[str, Any]:
    """Parameters of a technique as the rules plan it for this request: the usual strength of those that apply."""
    options = case.verdicts.settings.get(technique, ())
    if not options:
        return CATALOG[technique]().model_dump(mode="json")
    return options[len(options) // 2].model_dump(mode="json")


def spoken(technique: str) -> str:
    """A technique's name, with a word where it has no executor."""
    return technique if technique in runnable() else f"{technique} ({NOT_YET})"


def from_rule(
    case: Case, rule: Rule, level: Level, at: Path, observed: str, fix: str, patch: Patch | None = None
) -> Finding:
    """A finding in the words of a rule."""
    return Finding(
        id="",
        level=level,
        where=place(at) or "plan",
        observed=observed,
        why=fill(f"{rule.text} {rule.departs}".strip(), case.verdicts.facts),
        source=rule.source,
        fix=fix,
        rule=rule.id,
        patch=patch,
    )

"""Which rules are about a technique, and which fired ones speak for a chain or against it."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.verdicts import concerns
from knowledge.order import members
from knowledge.schema import Conclusion, Rule
from knowledge.techniques.catalog import CATALOG


def is_about(conclusion: Conclusion, technique: str) -> bool:
    """Whether a conclusion means a technique: by its id, its family, what it needs, or chains with its family."""
    for about in (conclusion.prefer, conclusion.avoid, conclusion.refuse, conclusion.warn):
        if about is not None and about != "all":
            return about.covers(technique) or CATALOG[technique].family in (about.chain or ())
    if conclusion.require is not None:
        return conclusion.require.technique == technique or conclusion.require.after.covers(technique)
    if conclusion.before is not None:
        return any(technique in members(name) for name in (conclusion.before.first, conclusion.before.then))
    return conclusion.set is not None and conclusion.set.technique == technique


def supports(rule: Rule, ids: Sequence[str], compression: float) -> bool:
    """Whether a fired rule speaks for a chain: prefers it, orders or completes its stages, or sets a parameter."""
    for conclusion in rule.then:
        if conclusion.prefer is not None and concerns(conclusion.prefer, ids, compression):
            return True
        if conclusion.require is not None and conclusion.require.technique in ids:
            return any(conclusion.require.after.covers(t) for t in ids)
        if conclusion.before is not None and _in_order(conclusion.before.first, conclusion.before.then, ids):
            return True
        if conclusion.set is not None and conclusion.set.technique in ids:
            return True
    return False


def objects(rule: Rule, ids: Sequence[str], compression: float) -> bool:
    """Whether a fired rule advises against a chain, and not at the same time for it."""
    avoids = any(c.avoid is not None and concerns(c.avoid, ids, compression) for c in rule.then)
    return avoids and not supports(rule, ids, compression)


def _in_order(first: str, then: str, ids: Sequence[str]) -> bool:
    def named(name: str) -> list[int]:
        return [n for n, t in enumerate(ids) if name in (t, CATALOG[t].family.value)]

    return bool(named(first)) and bool(named(then))

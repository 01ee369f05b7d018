"""Entries of the knowledge as rows, filtered: for the terminal and for JSON. Each says where it stands."""

from __future__ import annotations

from typing import Any

from advisor.checking.possible import families_of, situations
from advisor.reasons import is_about
from advisor.words import conclusion_text, when_text
from knowledge.conditions import VOCABULARY, reads
from knowledge.load import Knowledge
from knowledge.names import nearest
from knowledge.schema import STATUSES, Rule
from knowledge.techniques.catalog import technique_class
from knowledge.typical import build
from knowledge.values import InputError

Row = dict[str, Any]
ARCHITECTURES = ("transformer", "cnn", "rnn", "moe")


def rules(
    known: Knowledge,
    technique: str | None = None,
    arch: str | None = None,
    fact: str | None = None,
    tree: str | None = None,
    source: str | None = None,
) -> list[Row]:
    """Rules about a technique, that can fire for an architecture, that look at a fact; `tree`, `source`: parts of them.

    Raises InputError on a name that is not known.
    """
    _check(technique, arch)
    if fact is not None and fact not in VOCABULARY:
        raise InputError("fact", fact, "unknown fact", nearest(fact, VOCABULARY))
    found = []
    for one in situations(known):
        rule = one.rule
        if technique is not None and not any(is_about(c, technique) for c in rule.then):
            continue
        if arch is not None and arch not in families_of(one):
            continue
        if (fact is None or fact in reads(rule.when)) and _within(tree, rule.tree) and _within(source, rule.source):
            found.append(_rule_row(known, rule))
    return found


def _rule_row(known: Knowledge, rule: Rule) -> Row:
    said = {"when": when_text(rule.when), "then": [conclusion_text(c) for c in rule.then]}
    return {**rule.model_dump(mode="json", exclude_none=True), "says": said, "place": known.origin[f"rules/{rule.id}"]}


def claims(
    known: Knowledge,
    technique: str | None = None,
    arch: str | None = None,
    status: str | None = None,
    source: str | None = None,
) -> list[Row]:
    """Claims about a technique or an architecture, of a status; `source`: a part of it. Raises InputError."""
    _check(technique, arch)
    if status is not None and status not in STATUSES:
        raise InputError("status", status, "unknown status", f"known: {', '.join(STATUSES)}")
    return [
        {**claim.model_dump(mode="json"), "place": known.origin[f"claims/{claim.id}"]}
        for claim in known.claims.values()
        if technique in (None, claim.technique) and arch in (None, claim.arch) and status in (None, claim.status)
        if _within(source, claim.source)
    ]


def targets(known: Knowledge) -> list[Row]:
    """Every target."""
    return [
        {**target.model_dump(mode="json", by_alias=True), "place": known.origin[f"targets/{target.id}"]}
        for target in known.targets.values()
    ]


def models(known: Knowledge, arch: str | None = None) -> list[Row]:
    """Typical models of an architecture. Raises InputError."""
    _check(None, arch)
    return [
        {**model.model_dump(mode="json"), "built": build(model).parameters, "place": known.origin[f"models/{model.id}"]}
        for model in known.models.values()
        if arch in (None, model.info["family"])
    ]


def presets(known: Knowledge, technique: str | None = None) -> list[Row]:
    """Presets that set something of a technique. Raises InputError."""
    _check(technique, None)
    return [
        {**preset.model_dump(mode="json"), "place": known.origin[f"presets/{preset.id}"]}
        for preset in known.presets.values()
        if technique is None or technique in preset.params
    ]


def facts(known: Knowledge) -> list[Row]:
    """The vocabulary of conditions, with how many rules look at each fact."""
    read: list[str] = [name for rule in known.rules.values() for name in reads(rule.when)]
    return [
        {
            "fact": name,
            "kind": fact.kind,
            "unit": fact.unit,
            "values": list(fact.values),
            "meaning": fact.meaning,
            "rules": read.count(name),
        }
        for name, fact in VOCABULARY.items()
    ]


def _check(technique: str | None, arch: str | None) -> None:
    if technique is not None:
        technique_class(technique)
    if arch is not None and arch not in ARCHITECTURES:
        raise InputError("arch", arch, "unknown architecture", nearest(arch, ARCHITECTURES))


def _within(part: str | None, text: str) -> bool:
    return part is None or part.casefold() in text.casefold()

"""What is known of one technique, rule, claim or target, and what it means for a request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from advisor.reasons import is_about
from advisor.standing import Standing, best_with, standing
from advisor.verdicts import Refused
from advisor.words import Condition, conclusion_text, conditions_of, when_text
from knowledge.conditions import fill, holds, reads, show
from knowledge.load import Knowledge
from knowledge.schema import Claim, Figure, Rule, Target
from knowledge.values import Value

if TYPE_CHECKING:
    from advisor.advise import Deliberation


class Explained(Value):
    """Base of all explanations."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: Literal["advisor.explanation/1"] = Field("advisor.explanation/1", alias="schema")
    kind: str
    id: str


class Mention(Value):
    """A rule that says something about a technique."""

    rule: str
    says: tuple[str, ...]  # its conclusions about the technique, in words
    when: str
    text: str
    source: str
    fires: bool | None = None  # for the request, where there is one


class Here(Value):
    """What becomes of a technique in one request."""

    model: str
    target: str
    refused: Refused | None = None
    best: Standing | None = None  # the best chain that holds it


class TechniqueExplained(Explained):
    kind: Literal["technique"] = "technique"
    technique: dict[str, Any]  # as `advisor knowledge techniques` has it
    rules: tuple[Mention, ...]
    claims: tuple[Claim, ...]
    here: Here | None = None


class RuleExplained(Explained):
    kind: Literal["rule"] = "rule"
    tree: str
    when: tuple[Condition, ...]
    then: tuple[str, ...]
    text: str  # placeholders filled where there is a request
    source: str
    remedy: str
    departs: str
    place: str  # file:line
    facts: dict[str, str] | None = None  # what the request has for the facts it looks at, where there is one
    fires: bool | None = None


class ClaimExplained(Explained):
    kind: Literal["claim"] = "claim"
    claim: Claim
    place: str


class NamedFigure(Value):
    """A figure of a target."""

    name: str
    value: float
    source: str


class TargetExplained(Explained):
    kind: Literal["target"] = "target"
    about: str
    facts: dict[str, str]
    abilities: dict[str, dict[str, str]]  # field -> what it can do there -> who says so
    figures: tuple[NamedFigure, ...]
    place: str


def explain_technique(name: str, known: Knowledge, thought: Deliberation | None) -> TechniqueExplained:
    """A technique with the rules and the figures about it."""
    from advisor.techniques import technique_rows

    return TechniqueExplained(
        id=name,
        technique=technique_rows(name)[0],
        rules=tuple(mentions(name, known, thought)),
        claims=tuple(claim for claim in known.claims.values() if claim.technique == name),
        here=_here(name, thought) if thought is not None else None,
    )


def mentions(technique: str, known: Knowledge, thought: Deliberation | None = None) -> Iterator[Mention]:
    """The rules that prefer, avoid, refuse, require, order, set or warn of a technique."""
    for rule in known.rules.values():
        says = tuple(conclusion_text(c) for c in rule.then if is_about(c, technique))
        if says:
            text = f"{rule.text} {rule.departs}".strip()
            yield Mention(
                rule=rule.id,
                says=says,
                when=when_text(rule.when),
                text=fill(text, thought.facts) if thought is not None else text,
                source=rule.source,
                fires=holds(rule.when, thought.facts) if thought is not None else None,
            )


def _here(technique: str, thought: Deliberation) -> Here:
    refused = next((r for r in thought.verdicts.refused if r.technique == technique), None)
    best = best_with(technique, thought) if refused is None else None
    return Here(
        model=thought.predictor.layers.info.name,
        target=thought.predictor.target.id,
        refused=refused,
        best=standing(best, thought) if best is not None else None,
    )


def explain_rule(rule: Rule, known: Knowledge, thought: Deliberation | None) -> RuleExplained:
    """A rule in words; with a request, what its facts are there and whether it fires."""
    facts = thought.facts if thought is not None else None
    said = {
        n: getattr(rule, n) if facts is None else fill(getattr(rule, n), facts) for n in ("text", "remedy", "departs")
    }
    return RuleExplained(
        id=rule.id,
        tree=rule.tree,
        when=conditions_of(rule.when),
        then=tuple(conclusion_text(c) for c in rule.then),
        source=rule.source,
        place=known.origin.get(f"rules/{rule.id}", ""),
        facts=None if facts is None else {name: show(name, facts.get(name)) for name in sorted(reads(rule.when))},
        fires=None if facts is None else holds(rule.when, facts),
        **said,
    )


def explain_claim(claim: Claim, known: Knowledge) -> ClaimExplained:
    """A figure with where it is written."""
    return ClaimExplained(id=claim.id, claim=claim, place=known.origin.get(f"claims/{claim.id}", ""))


def explain_target(target: Target, known: Knowledge) -> TargetExplained:
    """A target's figures and abilities, each with its source."""
    values = {name: getattr(target, name) for name in type(target).model_fields}
    return TargetExplained(
        id=target.id,
        about=target.about,
        facts={name: str(v) for name, v in values.items() if isinstance(v, str | int) and name not in ("id", "about")},
        abilities={name: dict(value) for name, value in values.items() if isinstance(value, dict)},
        figures=tuple(
            NamedFigure(name=name, value=figure.value, source=figure.source)
            for name, figure in values.items()
            if isinstance(figure, Figure)
        ),
        place=known.origin.get(f"targets/{target.id}", ""),
    )

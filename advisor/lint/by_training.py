"""Checks of what is trained, and from whom: the gap to the teacher, the divergence, quantization without training."""

from __future__ import annotations

from collections.abc import Iterator

from advisor.lint.by_rules import from_rule, spoken
from advisor.lint.case import Case, Step
from advisor.lint.findings import Finding, Level, Path, said
from advisor.readiness import runnable
from knowledge.schema import Rule
from knowledge.students import DIFFICULTY, stages_for
from knowledge.techniques.base import Family, Need
from knowledge.techniques.catalog import CATALOG

HOPELESS_GAP = 15.0  # Model Compression Techniques, Capacity Matching Guidelines: beyond, a student usually fails
SAFE_GAP = 4.0  # of one stage, same place
REVERSE_KL, FORWARD_KL = "minillm", "distill"


def teacher_gap(case: Case) -> Iterator[Finding]:
    """A student that is too much smaller than its teacher to learn from it."""
    family = case.predictor.layers.info.family
    for step in case.steps:
        gap = float(getattr(step.technique, "compression", 1.0))
        if step.technique.family is not Family.DISTILL or gap * DIFFICULTY.get(family, 1.0) <= HOPELESS_GAP:
            continue
        each = stages_for(gap, family)
        fix = f"ask for at most {HOPELESS_GAP:g}, in stages of 2 to 4 times"
        if each[0] <= SAFE_GAP:
            fix = f"distill in {len(each)} stages of {each[0]:.1f} times, each student the next teacher"
        at: Path = ("stages", step.number, "params", "compression")
        why = "the student lacks the capacity for what its teacher knows: 10 times is reasonable, 700 times is not"
        yield said("error", at, f"a student {gap:g} times smaller than its teacher", why, fix)


def forward_kl_for_text(case: Case) -> Iterator[Finding]:
    """A generator distilled with the forward divergence where a rule prefers the reverse one."""
    rule = next((r for r in case.verdicts.fired if _prefers(r, REVERSE_KL)), None)
    if rule is None or REVERSE_KL not in case.verdicts.settings:
        return
    level: Level = "warning" if REVERSE_KL in runnable() else "note"
    for step in case.steps:
        if step.technique.id == FORWARD_KL:
            observed = f"{FORWARD_KL} minimizes the forward divergence, and the model writes text"
            yield from_rule(case, rule, level, ("stages", step.number), observed, f"use {spoken(REVERSE_KL)}")


def _prefers(rule: Rule, technique: str) -> bool:
    return any(c.prefer is not None and c.prefer.technique == technique for c in rule.then)


def quantized_untrained(case: Case) -> Iterator[Finding]:
    """A quantization that may by itself cost more than is allowed, where a trained one can be had."""
    allowed, unit = case.request.max_drop, case.request.max_drop_unit
    for step in case.steps:
        drop = case.predictor.quality.chain([step.technique]).high
        trained = _trained_sibling(case, step)
        if drop > allowed and trained is not None and not step.refusals:
            observed = f"{step.technique.id} may cost up to {drop:.2f} {unit}, {allowed:g} are allowed"
            why = "quantizing and deploying at once leaves a loss that quantization-aware training wins back"
            yield said("note", ("stages", step.number), observed, why, f"compare it with {spoken(trained)}")


def _trained_sibling(case: Case, step: Step) -> str | None:
    """An allowed quantization that trains, where this one does not."""
    if step.technique.family is not Family.QUANTIZE or Need.TRAINING in step.technique.needs:
        return None
    allowed = (n for n in case.verdicts.settings if CATALOG[n].family is Family.QUANTIZE)
    return next((n for n in allowed if Need.TRAINING in CATALOG[n].needs), None)

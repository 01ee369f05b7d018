"""Facts and rules make verdicts: every rule is asked, and every technique's own requirement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from advisor.predict import Predictor, after, file_bytes
from advisor.verdicts import Refused, Verdicts
from knowledge.conditions import Facts, fill, holds
from knowledge.layers import LayerTable
from knowledge.load import Knowledge
from knowledge.schema import Rule, Setting
from knowledge.techniques.base import Choices, Family, Range, Technique
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError, Refusal

OWN_SOURCE = "the technique's own requirement"
MOST_BYTES = 0.5  # share from which it is not for want of layers that nothing is gained
LEAST_GAIN = 1.02  # in size or speed, for a stage that costs quality


def judge(knowledge: Knowledge, facts: Facts, predictor: Predictor) -> Verdicts:
    """Apply every rule to the facts, and every technique's own requirement to the model."""
    layers = predictor.layers
    fired = tuple(rule for rule in knowledge.rules.values() if holds(rule.when, facts))
    by_rule = _refused_by_rules(fired, facts)
    said: dict[str, list[Setting]] = defaultdict(list)
    for setting in (c.set for rule in fired for c in rule.then if c.set is not None):
        said[setting.technique].append(setting)
    refused: list[Refused] = []
    settings: dict[str, tuple[Technique, ...]] = {}
    ranges: dict[str, dict[str, Range | Choices]] = {}
    students: dict[Technique, LayerTable] = {}
    for name, cls in CATALOG.items():
        if name in by_rule:
            refused.append(by_rule[name])
            continue
        space = cls.space_for(layers)
        own = said[name]
        planned, refusal = _plannable(cls, space, own, layers, students)
        if refusal is not None:
            refused.append(refusal)
            continue
        if (pointless := _pointless(planned, predictor, students)) is not None:
            refused.append(pointless)
            continue
        settings[name] = planned
        left = narrowed(space, own)
        ranges[name] = {p: kept for p, kept in left.items() if kept != space[p]}
    if not any(_lossy_model_stage(name) for name in settings):  # nothing is left to recover from
        settings.pop("finetune", None)
    return Verdicts(facts, fired, tuple(refused), settings, ranges, students)


def _refused_by_rules(fired: Iterable[Rule], facts: Facts) -> dict[str, Refused]:
    """The first refusal of each technique, by rule order."""
    found: dict[str, Refused] = {}
    for rule in fired:
        for about in (c.refuse for c in rule.then if c.refuse is not None):
            for name in about.techniques():
                if name not in found:
                    text, remedy = fill(rule.text, facts), fill(rule.remedy, facts)
                    found[name] = Refused(technique=name, rule=rule.id, text=text, source=rule.source, remedy=remedy)
    return found


def _plannable(
    cls: type[Technique],
    space: dict[str, Range | Choices],
    settings: Sequence[Setting],
    layers: LayerTable,
    students: dict[Technique, LayerTable],
) -> tuple[tuple[Technique, ...], Refused | None]:
    """The parameters worth planning with: gentle, usual and strong ones that this model can take."""
    whole = cls.space()  # a default that this model's part of the space leaves out is moved into it
    base: dict[str, Any] = {n: _inside(s, cls.model_fields[n].default) for n, s in space.items() if s != whole[n]}
    left = narrowed(space, settings)
    for setting in settings:
        usual = setting.start if setting.start is not None else cls.model_fields[setting.param].default
        if setting.param in space:
            base[setting.param] = _inside(left[setting.param], usual)
        elif setting.param not in cls.space():  # searched by nobody: plans set it
            base[setting.param] = setting.value if setting.value is not None else usual
    dial = space.get(cls.dial)
    values = (
        dial_values(dial, base.get(cls.dial, cls.model_fields[cls.dial].default)) if isinstance(dial, Range) else [None]
    )
    planned: list[Technique] = []
    refusal: Refused | None = None
    for value in values:
        technique = cls.model_validate(base if value is None else {**base, cls.dial: value})
        said = next(iter(technique.refusals(layers)), None) or _impossible(technique, layers, students)
        if said is None:
            planned.append(technique)
        elif refusal is None:
            source = said.source or (f"{OWN_SOURCE}; {cls.paper}" if cls.paper else OWN_SOURCE)
            text = f"Here: {said.observed}. Needed: {said.required}."
            refusal = Refused(technique=cls.id, rule=said.rule, text=text, source=source, remedy=said.remedy)
    return tuple(planned), None if planned else refusal


def narrowed(space: dict[str, Range | Choices], settings: Sequence[Setting]) -> dict[str, Range | Choices]:
    """What may be tried of each parameter that rules speak of, after all of them: what one fixes, no other opens."""
    left: dict[str, Range | Choices] = {}
    for setting in settings:
        if setting.param in space:
            left[setting.param] = setting.narrow(left.get(setting.param, space[setting.param]))
    return left


def _pointless(
    planned: Sequence[Technique], predictor: Predictor, students: dict[Technique, LayerTable]
) -> Refused | None:
    """A no to a technique that costs quality and changes hardly a byte nor a millisecond of this model's file."""
    hardest = max(planned, key=lambda t: t.strength())
    if hardest.lossless or hardest.phase is None:
        return None
    base = predictor.baseline
    _, files = after(hardest, predictor.layers, base.layers, students.get(hardest))
    if base.bytes > LEAST_GAIN * file_bytes(files, (hardest,)):
        return None
    if base.latency.total > LEAST_GAIN * predictor.roofline.latency(files).total:
        return None
    touched = hardest.touches(predictor.layers)
    share = predictor.layers.row_bytes[touched].sum() / max(predictor.layers.row_bytes.sum(), 1)
    small = share < MOST_BYTES
    return Refused(
        technique=hardest.id,
        rule="technique-no-gain",
        text=f"It changes layers with {100 * share:.0f} % of the bytes{':' if small else ', and still'} neither size "
        "nor latency would move by 2 %.",
        source="arithmetic on this model's layers",
        remedy=f"choose a technique {'for the layers that hold the bytes' if small else 'that stores fewer bytes'}",
    )


def dial_values(dial: Range, usual: float) -> list[float]:
    """The usual value, and one half-way to each end, on the dial's grid.

    >>> dial_values(Range(1.5, 4.0, step=0.25), 2.0)
    [1.75, 2.0, 3.0]
    """
    wanted = ((dial.low + usual) / 2, usual, (usual + dial.high) / 2)
    return sorted({_snapped(dial, min(max(value, dial.low), dial.high)) for value in wanted})


def _snapped(dial: Range, value: float) -> float:
    if not dial.step:
        return value
    return round(dial.low + dial.step * round((value - dial.low) / dial.step), 6)


def _inside(space: Range | Choices, value: Any) -> Any:
    if isinstance(space, Choices):
        return value if value in space else space[0]
    return min(max(value, space.low), space.high)


def _impossible(technique: Technique, layers: LayerTable, students: dict[Technique, LayerTable]) -> Refusal | None:
    """A student that no shape comes near; one that can be built is kept in `students`."""
    if technique.family is not Family.DISTILL:
        return None
    try:
        students[technique] = technique.effect(layers)
    except InputError as error:
        return Refusal(
            technique=technique.id,
            rule="technique-no-student",
            observed=error.problem,
            required=error.remedy or "a model that can be built smaller",
        )
    return None


def _lossy_model_stage(name: str) -> bool:
    cls = CATALOG[name]
    return cls.phase is not None and not cls.lossless and cls.level.value == "model"

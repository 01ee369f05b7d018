"""What would change the answer: a little more quality to spend, data, training, other arithmetic, a looser limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from advisor.ranking import Ranked, Ranking
from advisor.recommendation import Change
from advisor.units import bytes_text, ms_text, ratio_text
from knowledge.conditions import holds
from knowledge.schema import Figure

if TYPE_CHECKING:
    from advisor.advise import Deliberation
    from advisor.request import Request

WORTH_TELLING = 1.2  # times smaller or faster than the present answer
MORE_DROP = {"pp": (1.0, 3.0), "%": (1.0, 5.0)}
INT8_FACTOR = 3.0  # of server-cpu, where it was measured
MOST = 4
ROUNDING = 1.01

Consider = Callable[..., "Deliberation"]


def changes_of(thought: Deliberation, consider: Consider) -> tuple[Change, ...]:
    """The changes worth telling, at most four, each with the chain that would come first then."""
    now = next((r for r in thought.ranked if r.fits), None)
    found: list[Change] = []
    for option, words, best in _alternatives(thought, consider):
        if best is None or not best.fits:
            continue
        text, chain = _gain(words, best, now), "+".join(best.candidate.ids) or "nothing"
        outlook = thought.predictor.estimate(best.candidate.outlook)
        told = {(known.chain, known.compression) for known in found}
        if text and (chain, outlook.compression) not in told:  # a smaller step that brings as much was told first
            found.append(
                Change(option=option, text=text, chain=chain, compression=outlook.compression, speedup=outlook.speedup)
            )
    if now is None:
        found += _looser_limits(thought)
    return tuple(found[:MOST])


def _alternatives(thought: Deliberation, consider: Consider) -> Iterator[tuple[str, str, Ranked | None]]:
    """(option, words, the chain that would come first)."""
    request = thought.request
    for more in MORE_DROP[request.max_drop_unit or "pp"]:
        unit = request.max_drop_unit or "pp"
        allowed = request.max_drop + more
        yield (
            f"--max-drop {allowed:g}{unit}",
            f"{more:g} {unit} more to spend would allow",
            _first(_with_drop(thought, allowed)),
        )
    for field, value, words in _more_means(request):
        other = request.model_copy(update={field: value})
        considered = consider(other, thought.knowledge, thought.predictor)
        yield f"--{field.replace('_', '-')} {value}", words, _first(considered.ranked)
    target = thought.predictor.target
    if target.device == "cpu" and "int8_dot" not in target.accelerates:
        figure = Figure(value=INT8_FACTOR, source="measured: server-cpu")
        better = target.model_copy(
            update={
                "accelerates": {**target.accelerates, "int8_dot": "supposed"},
                "int8_factor": figure,
                "int8_conv_factor": figure,
            }
        )
        predictor = thought.predictor.on(better)
        best = _first(consider(request, thought.knowledge, predictor).ranked)
        yield "", "on hardware with an INT8 dot product there would be", best


def _more_means(request: Request) -> Iterator[tuple[str, str, str]]:
    """Options one step up from what is at hand."""
    if request.data_level in ("none", "calibration"):
        yield "data_level", "unlabeled", "with inputs to train on, labels or not, there would be"
    if request.data_level == "none":
        yield "data_level", "calibration", "with a few hundred representative inputs there would be"
    if request.training == "none":
        yield "training", "light", "with light training there would be"
    if request.training in ("none", "light"):
        yield "training", "full", "with full training there would be"


def _with_drop(thought: Deliberation, allowed: float) -> tuple[Ranked, ...]:
    """The same chains under another quality budget: rules and ranking are asked again, nothing is explored anew."""
    request = thought.request.model_copy(update={"max_drop": allowed})
    facts: dict[str, Any] = dict(thought.facts)
    for name in ("max_drop_pp", "max_drop_percent"):
        if facts[name] is not None:
            facts[name] = allowed
    fired = tuple(rule for rule in thought.knowledge.rules.values() if holds(rule.when, facts))
    verdicts = replace(thought.verdicts, facts=facts, fired=fired)
    return tuple(Ranking(request, thought.predictor, verdicts).order(thought.candidates))


def _first(ranked: tuple[Ranked, ...]) -> Ranked | None:
    return ranked[0] if ranked else None


def _gain(words: str, best: Ranked, now: Ranked | None) -> str:
    """What a change brings, in a sentence; empty where it is not worth telling."""
    after = best.candidate.outlook
    chain = " → ".join(best.candidate.ids) or "do nothing"
    if now is None:
        return f"{words} {chain}, which fits: {ratio_text(after.compression)} smaller."
    before = now.candidate.outlook
    smaller, faster = after.compression / before.compression, after.speedup / before.speedup
    parts = []
    if smaller >= WORTH_TELLING:
        parts.append(f"{ratio_text(after.compression)} smaller instead of {ratio_text(before.compression)}")
    if faster >= WORTH_TELLING:
        parts.append(f"{ratio_text(after.speedup)} faster instead of {ratio_text(before.speedup)}")
    if not parts or min(smaller, faster) < 1 / WORTH_TELLING:
        return ""
    return f"{words} {chain}: {' and '.join(parts)}."


def _looser_limits(thought: Deliberation) -> list[Change]:
    """Nothing fits: the limits that the nearest chain would need, one change for each."""
    nearest = _first(thought.ranked)
    if nearest is None:
        return []
    unit = thought.request.max_drop_unit or "pp"
    options: dict[str, tuple[str, str, Callable[[float], str]]] = {
        "size": ("--max-size", "size", bytes_text),
        "memory": ("--max-memory", "memory", bytes_text),
        "latency": ("--max-latency", "latency", ms_text),
        "speedup": ("--min-speedup", "speed-up", ratio_text),
        "quality": ("--max-drop", "loss", lambda drop: f"{math.ceil(100 * drop) / 100:g} {unit}"),
    }
    figures = thought.predictor.estimate(nearest.candidate.outlook)
    found = []
    for limit, (_, estimated) in nearest.misses.items():
        option, name, show = options[limit]
        estimated *= ROUNDING if limit != "speedup" else 1 / ROUNDING  # what is shown must be enough
        rest = "" if len(nearest.misses) == 1 else ", together with the other limits here,"
        text = f"a {name} limit of {show(estimated)}{rest} would be met by {' → '.join(nearest.candidate.ids)}."
        found.append(
            Change(
                option=f"{option} {show(estimated).replace(' ', '').removesuffix('×')}",
                text=text,
                chain="+".join(nearest.candidate.ids) or "nothing",
                compression=figures.compression,
                speedup=figures.speedup,
            )
        )
    return found

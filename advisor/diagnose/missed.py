"""Limits that the file misses: by how much, where it was lost, and what to turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from advisor.diagnose import commands
from advisor.diagnose.read import Run
from advisor.diagnose.values import S1, Diagnosis
from advisor.report.measured import quality_drop, speed_text
from advisor.units import bytes_text, loss_text
from knowledge.techniques.base import Level, Need, Range, Technique
from knowledge.techniques.catalog import build
from knowledge.values import Stage

SOFTER = (("temperature", 1.0, 1.0), ("feature_weight", 2.0, 0.0))  # S1: 3 instead of 2, 0.2 instead of 0.1


def missed(run: Run) -> Iterator[Diagnosis]:
    """One diagnosis for each limit that is missed."""
    for miss in run.verification["verdict"]["misses"]:
        limit = miss["limit"]
        told = {"quality": _quality, "size": _size, "memory": _memory}.get(limit, _speed)
        yield told(run, miss["text"])


def _quality(run: Run, text: str) -> Diagnosis:
    """S1's high perplexity degradation: more epochs, a softer teacher, more feature matching."""
    lost, unit = run.losses(), run.plan.budget.max_drop.unit
    worst = max(range(len(lost)), key=lost.__getitem__, default=None)
    steps = [f"{stage['technique']} {loss_text(drop, unit)}" for stage, drop in zip(run.stages, lost, strict=True)]
    settings = gentler(run, worst)
    advice, edited = turn_text(settings) or "search gentler chains", bool(settings)
    if worst is not None and _unrecovered(run, worst):
        advice, edited = f"recover after {run.stages[worst]['technique']}, which --fix puts in; {advice}", True
    to_try = commands.edited_run(run.plan, run.folder, settings) if edited else ()
    return Diagnosis(
        id="quality-lost",
        level="problem",
        about="run",
        seen=f"{text}; stage by stage, on the search split: {', '.join(steps) or 'no stage'}",
        why="more training, a softer teacher and a gentler cut win quality back",
        source=f"{S1}: high perplexity degradation",
        advice=advice,
        commands=(*to_try, commands.search_beside(run.plan, run.folder, goal="quality")),
    )


def other_split(run: Run) -> Iterator[Diagnosis]:
    """Quality that was within the budget where the plan was chosen, and is not where it was proved."""
    allowed, searched = run.plan.budget.max_drop, sum(run.losses())
    proved = quality_drop(run.verification, allowed.unit)
    if run.plan.stages and searched <= allowed.amount < proved:
        margin = f"{0.7 * allowed.amount:.2g}{allowed.unit}"
        yield Diagnosis(
            id="other-split",
            level="cause",
            about="run",
            seen=f"{searched:.2f} {allowed.unit} lost on the search split, {proved:.2f} on the verification split",
            why="a search reports its winner's luck: what is near the limit on one split may be beyond it on another",
            source="this tool: the verification split is touched once, for the final file",
            advice=f"search with a margin: at most {margin}",
            commands=(commands.search_beside(run.plan, run.folder, max_drop=margin),),
        )


def turn_text(settings: Mapping[str, Any]) -> str:
    """Parameters to change, in words."""
    return ", ".join(f"{name} to {commands.text_of(value)}" for name, value in settings.items())


def gentler(run: Run, worst: int | None) -> dict[str, Any]:
    """Parameters that win quality back, as technique.parameter: of trainings, or else the dial of the worst stage."""
    found: dict[str, Any] = {}
    for name, technique in named(run):
        if Need.TRAINING in technique.needs and (epochs := getattr(technique, "epochs", None)) is not None:
            found[f"{name}.epochs"] = 2 * max(1, epochs)
        for parameter, factor, more in SOFTER:
            value = getattr(technique, parameter, None)
            if value and (softer := inside(technique, parameter, factor * value + more)) is not None:
                found[f"{name}.{parameter}"] = softer
    if not found and worst is not None:
        name, technique = list(named(run))[worst]
        milder = turned(technique, harder=False) if technique.dial else None
        found = {} if milder is None else {f"{name}.{technique.dial}": milder}
    return found


def _unrecovered(run: Run, worst: int) -> bool:
    """Whether the stage that lost most changes the torch model and nothing trains behind it."""
    chain = [technique for _, technique in named(run)]
    lossy = chain[worst].level is Level.MODEL and Need.TRAINING not in chain[worst].needs
    return lossy and not any(Need.TRAINING in t.needs for t in chain[worst + 1 :])


def _size(run: Run, text: str) -> Diagnosis:
    """S1's poor compression: a harder cut, where there is quality left for it, and what still holds the bytes."""
    poor = any(miss["limit"] == "quality" for miss in run.verification["verdict"]["misses"])
    settings = {}
    for name, technique in named(run) if not poor else ():
        if technique.dial and (value := turned(technique, harder=True)) is not None:
            settings[f"{name}.{technique.dial}"] = value
    edited = commands.edited_run(run.plan, run.folder, settings) if settings else ()
    advice = "search chains with a technique for the layers that hold the bytes"
    if poor:
        advice = "quality is missed too, a harder cut alone will not do: search other chains, or allow more"
    return Diagnosis(
        id="size-missed",
        level="problem",
        about="run",
        seen=f"{text}; {heaviest(run)}",
        why="a file is as large as the numbers that are left in it, at the bits that they have",
        source=f"{S1}: poor compression",
        advice=turn_text(settings) or advice,
        commands=(*edited, commands.search_beside(run.plan, run.folder, goal="size")),
    )


def heaviest(run: Run) -> str:
    """What holds most of the bytes that are left."""
    assert run.run is not None
    by_kind: defaultdict[tuple[str, int], float] = defaultdict(float)
    for row in run.run.get("layers", ()):
        if row["after"]:
            by_kind[row["kind"], row["after"]["bits"]] += row["after"]["bytes"]
    total = sum(by_kind.values()) or 1.0
    largest = sorted(by_kind.items(), key=lambda pair: -pair[1])[:3]
    shares = [f"{kind} in {bits} bits {100 * size / total:.0f} %" for (kind, bits), size in largest]
    return f"left are {', '.join(shares)}"


def _speed(run: Run, text: str) -> Diagnosis:
    return Diagnosis(
        id="speed-missed",
        level="problem",
        about="run",
        seen=f"{text}; {speed_text(run.verification['speedup'])} than the uncompressed file",
        why="the causes below say what the time that is left goes into",
        source="measured on this machine, both files taking turns",
        advice="search for speed",
        commands=(commands.search_beside(run.plan, run.folder, goal="latency"),),
    )


def _memory(run: Run, text: str) -> Diagnosis:
    """S1's out of memory, at run time: a smaller batch."""
    batch, peak = run.plan.workload.batch, run.verification["compressed"]["peak_memory_bytes"]
    weights = run.verification["compressed"]["size_bytes"]
    changes: dict[str, Any] = {"goal": "memory"}
    advice = "search for memory"
    if batch > 1:
        changes["batch"], advice = batch // 2, f"halve the batch to {batch // 2}, and search for memory"
    return Diagnosis(
        id="memory-missed",
        level="problem",
        about="run",
        seen=f"{text}; the file itself is {bytes_text(weights)} of the {bytes_text(peak)}",
        why="the rest is the runtime and what a batch leaves between layers",
        source=f"{S1}: out of memory",
        advice=advice,
        commands=(commands.search_beside(run.plan, run.folder, **changes),),
    )


def named(run: Run) -> Iterator[tuple[str, Technique]]:
    """The plan's techniques under the names that `lint --set` gives them."""
    seen: dict[str, int] = {}
    for stage in run.plan.stages:
        count = seen[stage.technique] = seen.get(stage.technique, 0) + 1
        yield stage.technique if count == 1 else f"{stage.technique}#{count}", build(Stage.model_validate(stage))


def turned(technique: Technique, harder: bool) -> float | None:
    """The dial one third of the way to an end of its range; None where it stands there."""
    space = technique.space().get(technique.dial)
    if not isinstance(space, Range):
        return None
    now = float(getattr(technique, technique.dial))
    ends = sorted((space.low, space.high), key=lambda v: technique.model_copy(update={technique.dial: v}).strength())
    wanted = now + (ends[harder] - now) / 3
    value = space.low + space.step * round((wanted - space.low) / space.step) if space.step else wanted
    value = round(min(max(value, space.low), space.high), 6)
    return value if value != now else (ends[harder] if ends[harder] != now else None)


def inside(technique: Technique, parameter: str, value: float) -> float | None:
    """The value, at most at the end of what search tries; None where it stands there already."""
    space = technique.space().get(parameter)
    value = min(value, space.high) if isinstance(space, Range) else value
    return round(value, 6) if value != getattr(technique, parameter) else None

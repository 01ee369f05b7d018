"""Runs and searches that did not come to their end: where they stopped, what may have stopped them, how to go on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from advisor.costs import CostModel
from advisor.diagnose import commands
from advisor.diagnose.read import Run, Study
from advisor.diagnose.trials import study_command
from advisor.diagnose.values import S1, Diagnosis
from advisor.doctor import LOW_DISK_BYTES
from advisor.profile import profile_source
from advisor.units import bytes_text
from backends.memory import total_memory
from knowledge.sources import is_factory
from knowledge.techniques.base import Level, Technique
from knowledge.techniques.catalog import build
from knowledge.values import InputError

TIGHT = 0.8  # share of the machine's memory from which a stage is in danger
KEPT = "every finished stage is kept under the hash of all that led to it: the same command goes on behind it"


def unfinished_run(run: Run) -> Iterator[Diagnosis]:
    """A run folder without results."""
    if run.run is not None:
        return
    number, total = len(run.done), len(run.plan.stages)
    where = stopped_in(run)
    seen = f"no run.json: {number} of {total} stages are done, and it ended, or still is, in {where}"
    yield Diagnosis(
        id="unfinished",
        level="problem",
        about="run",
        seen=seen,
        why=f"a run writes its results last; {KEPT}",
        source="this tool",
        advice="run it again into the same folder",
        commands=(commands.run(run.plan, run.folder / "plan.yaml", run.folder),),
    )
    yield from _memory(run)
    yield from _disk(run.folder)


def stopped_in(run: Run) -> str:
    """The first thing of a plan that has left no result."""
    number = len(run.done)
    if (run.folder / "verification.json").exists():
        return "writing the results"
    if number == len(run.plan.stages):
        return "the export or the verification"
    technique = build(run.plan.stages[number])
    exported = number > 0 and build(run.plan.stages[number - 1]).level is Level.GRAPH
    before = "the export or " if technique.level is Level.GRAPH and not exported else ""
    return f"{before}stage {number + 1} ({technique.id})"


def _memory(run: Run) -> Iterator[Diagnosis]:
    """The stage that was under way may need more memory than there is."""
    number = len(run.done)
    if number == len(run.plan.stages) or is_factory(run.plan.model):
        return
    technique = build(run.plan.stages[number])
    cost = _cost(run, technique)
    if cost is None or cost[1] <= TIGHT * total_memory():
        return
    low, high = cost
    memory, (advice, to_try) = bytes_text(total_memory()), commands.with_less_memory(run.plan)
    yield Diagnosis(
        id="out-of-memory",
        level="cause",
        about=f"stage {number + 1} ({technique.id})",
        seen=f"it is expected to take {bytes_text(low)} to {bytes_text(high)}, this machine has {memory}",
        why="weights, gradients, optimizer and activations are held at once: a process that needs more is killed",
        source=f"{S1}: out of memory",
        advice=advice,
        commands=(to_try,),
    )


def _cost(run: Run, technique: Technique) -> tuple[float, float] | None:
    """Expected peak memory of a stage, low and high; None where the model is not at hand any more."""
    plan = run.plan
    try:
        layers = profile_source(plan.model, arch=plan.arch or None, task=plan.task or None, workload=plan.workload)
    except InputError:  # the diagnosis goes on without: a model that is gone says nothing of memory
        return None
    peak = CostModel(layers, plan.workload).chain([technique]).peak_memory_bytes
    return peak.low, peak.high


def _disk(folder: Path) -> Iterator[Diagnosis]:
    free = shutil.disk_usage(folder).free
    if free < LOW_DISK_BYTES:
        yield Diagnosis(
            id="disk-low",
            level="cause",
            about="run",
            seen=f"{bytes_text(free)} are free where the folder lies",
            why="a stage that cannot be written ends the run; what was finished is kept",
            source="this tool",
            advice="free some space, or set ADVISOR_CACHE to another disk",
            commands=("advisor doctor",),
        )


def unfinished_study(study: Study) -> Iterator[Diagnosis]:
    """A search that did not end, or whose winner was not run to its end."""
    if study.pareto is None:
        yield Diagnosis(
            id="unfinished-search",
            level="problem",
            about="study",
            seen="no pareto.json: the search ended, or still is, in its trials",
            why="a search writes its results last; finished trials are kept in its storage",
            source="this tool",
            advice="give the same command again, with every option that it had",
            commands=(study_command(study, study.folder),),
        )
    elif study.plan is not None and study.best is None:
        plan_file = study.folder / "best-plan.yaml"
        yield Diagnosis(
            id="unfinished-winner",
            level="problem",
            about="study",
            seen="the best plan is known, and was not run",
            why=KEPT,
            source="this tool",
            advice="run it",
            commands=(commands.run(study.plan, plan_file, study.folder / "best"),),
        )

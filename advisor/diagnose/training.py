"""What training and memory were like during the run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from advisor.diagnose import commands
from advisor.diagnose.missed import named
from advisor.diagnose.read import Run
from advisor.diagnose.unfinished import TIGHT
from advisor.diagnose.values import S1, Diagnosis
from advisor.units import bytes_text
from backends.memory import total_memory
from knowledge.techniques.base import Need

FALLING = 0.05  # between the last two fifths of a training
FEWEST_POINTS = 10


def still_learning(run: Run) -> Iterator[Diagnosis]:
    """Trainings that ended while the loss was falling."""
    for number, ((name, technique), stage) in enumerate(zip(named(run), run.stages, strict=False), 1):
        losses = [point["loss"] for point in stage["decision"].get("curve", ())]
        if Need.TRAINING not in technique.needs or len(losses) < FEWEST_POINTS:
            continue
        fifth = len(losses) // 5
        before, last = statistics.mean(losses[-2 * fifth : -fifth]), statistics.mean(losses[-fifth:])
        epochs = int(getattr(technique, "epochs", 0))
        if epochs and last < (1 - FALLING) * before:
            yield Diagnosis(
                id="still-learning",
                level="note",
                about=f"stage {number} ({technique.id})",
                seen=f"its loss fell from {before:.3g} to {last:.3g} in the last fifth of {epochs} epochs",
                why="a training that ends while its loss falls leaves quality behind",
                source=f"{S1}: more training epochs",
                advice=f"train for {2 * epochs} epochs",
                commands=commands.edited_run(run.plan, run.folder, {f"{name}.epochs": 2 * epochs}),
            )


def tight_memory(run: Run) -> Iterator[Diagnosis]:
    """Stages that took most of the machine's memory."""
    for number, stage in enumerate(run.stages, 1):
        peak, memory = stage["peak_memory_bytes"], total_memory()
        if peak > TIGHT * memory:
            advice, to_try = commands.with_less_memory(run.plan)
            yield Diagnosis(
                id="memory-tight",
                level="note",
                about=f"stage {number} ({stage['technique']})",
                seen=f"its peak was {bytes_text(peak)} of this machine's {bytes_text(memory)}",
                why="a process that needs more memory than there is is killed, and the run ends unfinished",
                source=f"{S1}: out of memory",
                advice=advice,
                commands=(to_try,),
            )


def unspent(run: Run) -> Iterator[Diagnosis]:
    """Quality that was allowed and not spent, where something else is wanting."""
    allowed = run.plan.budget.max_drop
    lost = max(0.0, sum(run.losses()))
    if run.verification["verdict"]["within_budget"] or not run.losses() or lost > allowed.amount / 2:
        return
    yield Diagnosis(
        id="quality-unspent",
        level="note",
        about="run",
        seen=f"{lost:.2f} of {allowed} were lost on the search split",
        why="what is allowed and not spent buys size or speed",
        source=f"{S1}: poor compression",
        advice="compress harder",
        commands=(commands.search_beside(run.plan, run.folder, goal="size"),),
    )

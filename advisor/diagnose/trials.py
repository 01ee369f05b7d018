"""What a search tells: nothing fits, trials that were stopped or failed, trials that never ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from advisor.diagnose import commands
from advisor.diagnose.read import Json, Study
from advisor.diagnose.values import S1, Diagnosis
from advisor.report.study import nearest_text, needed_options
from advisor.texts import finished_trials, trial_chain

MOST = 0.5  # share of the trials that says something of the search as a whole


def nothing_fits(study: Study) -> Iterator[Diagnosis]:
    """No trial within the budget: what the nearest one would need."""
    pareto = study.pareto
    if pareto is None or pareto["best"] is not None:
        return
    trials = finished_trials(pareto)
    near = next((t for t in trials if t["number"] == pareto.get("nearest")), None)
    relaxed = relaxed_options(near, study) if near is not None else {}
    words = " and ".join(f"--{name.replace('_', '-')} {value}" for name, value in relaxed.items())
    more = 2 * max(len(trials), 1)
    again = commands.free(study.folder)
    told = "; ".join(nearest_text(pareto)[:1]) or "none was measured"
    yield Diagnosis(
        id="nothing-fits",
        level="problem",
        about="study",
        seen=f"none of {len(trials)} trials meets the budget; {told}",
        why="limits are constraints: the answer is none, and by how much",
        source=f"this tool; {S1}: poor compression",
        advice=f"allow what the nearest trial needs ({words}), or search longer" if words else "search longer",
        commands=(
            *((study_command(study, again, trials=more, **relaxed),) if relaxed else ()),
            study_command(study, study.folder, trials=more),
        ),
    )


def relaxed_options(trial: Json, study: Study) -> dict[str, str]:
    """Options under which a trial would have been within the budget."""
    unit = (study.request.max_drop_unit or "") if study.request else ""
    return needed_options(trial, unit)


def stopped_early(study: Study) -> Iterator[Diagnosis]:
    """Trials that had lost the budget before they were at their end."""
    trials = finished_trials(study.pareto) if study.pareto else []
    stopped = [t for t in trials if t.get("stopped_at")]
    if not stopped:
        return
    by_stage = Counter(t["stopped_at"] for t in stopped)
    least = min((t["quality_drop"] for t in stopped if t.get("quality_drop") is not None), default=None)
    where = ", ".join(f"{count} after {stage}" for stage, count in by_stage.most_common())
    lost = f": they had lost {least:.2f} or more" if least is not None else ""
    many = len(stopped) > MOST * len(trials)
    yield Diagnosis(
        id="stopped-early",
        level="cause" if many else "note",
        about="study",
        seen=f"{len(stopped)} of {len(trials)} trials were stopped ({where}){lost}",
        why="no training was left to win back what they had lost: measuring their files would have been in vain",
        source="this tool",
        advice="search for quality, or allow a larger loss" if many else "nothing: this is how a search saves time",
        commands=(study_command(study, commands.free(study.folder), goal="quality", trials=2 * len(trials)),),
    )


def failed(study: Study) -> Iterator[Diagnosis]:
    """Trials that could not be carried out, by their trouble."""
    trials = finished_trials(study.pareto) if study.pareto else []
    troubles: dict[str, list[Json]] = {}
    for trial in trials:
        if trial.get("failed"):
            troubles.setdefault(str(trial["failed"]), []).append(trial)
    for trouble, group in troubles.items():
        chains = ", ".join(dict.fromkeys(trial_chain(t) for t in group))
        yield Diagnosis(
            id="trials-failed",
            level="cause" if len(group) > MOST * len(trials) else "note",
            about=f"study: {chains}",
            seen=f"{len(group)} of {len(trials)} trials failed: {trouble}",
            why="these parameters could not be carried out; others of the same chain may",
            source="the trial's own message",
            advice="let the search go on: failed trials are not repeated",
            commands=(study_command(study, study.folder, trials=len(trials) + len(group)),),
        )


def never_ran(study: Study) -> Iterator[Diagnosis]:
    """Trials that waited or ran when the search ended."""
    trials: list[Json] = study.pareto["trials"] if study.pareto is not None else []
    left = [t for t in trials if t["state"] in ("waiting", "running")]
    if left:
        yield Diagnosis(
            id="trials-left",
            level="note",
            about="study",
            seen=f"{len(left)} of {len(trials)} trials were waiting or running when the search ended",
            why="the time or the number of trials was up before every chain had its turn, or a process was killed",
            source="this tool",
            advice="let the search go on",
            commands=(study_command(study, study.folder, trials=len(trials)),),
        )


def study_command(study: Study, out: Path, **changes: Any) -> str:
    """A search like the study's, with options changed; where its options are not kept, with those that are known."""
    asked = study.request or study.plan
    if asked is not None:
        return commands.search(asked, out, **changes)
    goal = study.pareto["goal"] if study.pareto is not None else None
    return commands.command("search", study.model, {"goal": goal, **changes, "out": out})

"""Why a run or a search ended as it did, and what to try next. Nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from advisor.diagnose import gains, missed, training, trials, unfinished
from advisor.diagnose.read import Run, Study, read_folder
from advisor.diagnose.values import LEVELS, Diagnosis, Report

__all__ = ["Diagnosis", "Report", "diagnose"]

OF_RUNS: tuple[Callable[[Run], Iterator[Diagnosis]], ...] = (
    missed.missed,
    missed.other_split,
    gains.explained,
    gains.slower,
    gains.skipped,
    gains.no_effect,
    gains.off_estimate,
    gains.uncertain,
    training.still_learning,
    training.tight_memory,
    training.unspent,
)
OF_STUDIES: tuple[Callable[[Study], Iterator[Diagnosis]], ...] = (
    unfinished.unfinished_study,
    trials.nothing_fits,
    trials.stopped_early,
    trials.failed,
    trials.never_ran,
)


def diagnose(folder: Path) -> Report:
    """Everything that explains what is in a run or study folder; raises InputError where it is neither."""
    found = read_folder(folder)
    if isinstance(found, Run):
        said = list(_of_run(found))
        return Report(folder=str(folder), kind="run", verdict=_verdict(found), diagnoses=_sorted(said))
    said = [d for check in OF_STUDIES for d in check(found)]
    if found.best is not None:
        said += _of_run(found.best)
    verdict = _verdict(found.best) if found.best is not None else "The search has no finished result."
    return Report(folder=str(folder), kind="study", verdict=verdict, diagnoses=_sorted(said))


def _of_run(run: Run) -> Iterator[Diagnosis]:
    yield from unfinished.unfinished_run(run)
    if run.run is not None:
        for check in OF_RUNS:
            yield from check(run)


def _verdict(run: Run) -> str:
    from advisor.report.measured import verdict_of

    return verdict_of(run.verification)[1] if run.run is not None else "The run is unfinished."


def _sorted(said: list[Diagnosis]) -> tuple[Diagnosis, ...]:
    """Problems first, then what causes them, then what is worth knowing."""
    return tuple(sorted(said, key=lambda d: LEVELS.index(d.level)))

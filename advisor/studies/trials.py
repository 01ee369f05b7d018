"""Running a study's trials, in this process or in several, until there are enough or the time is up."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from advisor import interrupts
from advisor.execute import open_pipeline
from advisor.progress import Progress, silent
from advisor.studies.front import best_trial
from advisor.studies.objective import Objective, TrialFailed, stages_of
from advisor.studies.space import chain_id
from advisor.studies.storage import Assignment, open_study
from knowledge.files import disk_full
from knowledge.values import RunFailed

if TYPE_CHECKING:
    from backends.runner import Pipeline

POLL_SECONDS = 0.5


def optimize(assignment: Assignment, pipeline: Pipeline, study: optuna.Study, progress: Progress) -> None:
    """Run trials until the study holds as many as asked for, or the deadline has passed.

    Trials that other processes of the same search are running count as held: who runs them goes on if they come to
    nothing. Between counting and starting a trial no other process does either.
    """
    objective = Objective(pipeline, assignment.chains, assignment.plan.budget, assignment.plan.goal)
    lock = f"trials-{assignment.study.rpartition('-')[2]}"

    def report(study: optuna.Study, trial: FrozenTrial) -> None:
        progress(_line(study, trial, assignment))

    while assignment.deadline is None or time.time() < assignment.deadline:
        interrupts.check()
        with ExitStack() as turn:
            turn.enter_context(pipeline.store.lock(lock))
            if counted(study) + _running(study, assignment.search) >= assignment.trials:
                return
            one = _in_turn(objective, turn, assignment.search)
            study.optimize(one, n_trials=1, callbacks=[report], catch=(TrialFailed,))


def _in_turn(objective: Objective, turn: ExitStack, search: str) -> Callable[[optuna.Trial], Any]:
    """The objective of one trial; once it is known as running, another process may start one."""

    def run(trial: optuna.Trial) -> tuple[float, ...] | float:
        trial.set_user_attr("search", search)
        turn.close()
        return objective(trial)

    return run


def optimize_in_processes(assignment: Assignment, workers: int, study: optuna.Study, progress: Progress) -> None:
    """The same in several processes on one storage. Raises RunFailed with the first worker's trouble."""
    context = multiprocessing.get_context("spawn")
    troubles: Queue[str] = context.Queue()
    processes = [context.Process(target=_work, args=(assignment, n + 1, workers, troubles)) for n in range(workers)]
    for process in processes:
        process.start()
    told = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}
    try:
        while any(p.is_alive() for p in processes):
            time.sleep(POLL_SECONDS)
            for trial in study.get_trials(deepcopy=False):
                if trial.state.is_finished() and trial.number not in told:
                    told.add(trial.number)
                    progress(_line(study, trial, assignment))
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()
    if any(p.exitcode for p in processes):
        trouble = troubles.get(timeout=1) if not troubles.empty() else f"exit code {processes[0].exitcode}"
        raise RunFailed(f"a search process failed: {trouble}; finished trials are kept: the same command goes on")


def _work(assignment: Assignment, number: int, workers: int, troubles: Queue[str]) -> None:
    """One of several processes."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    try:
        study = open_study(assignment, assignment.plan.seed + 1000 * number)
        optimize(assignment, open_pipeline(assignment.plan), study, silent)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:  # told to the process that started this one, which ends with it
        what = "the disk is full" if disk_full(error) else type(error).__name__
        troubles.put(f"{what}: {' '.join(str(error).split())}")
        raise SystemExit(1) from None


def counted(study: optuna.Study) -> int:
    """Trials that count: one that repeats another's stages costs nothing, and only every third of them counts."""
    trials = study.get_trials(deepcopy=False)
    done = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED) or "failed" in t.user_attrs]
    repeats = sum("same_as" in t.user_attrs for t in done)
    return len(done) - repeats + repeats // 3


def _running(study: optuna.Study, search: str) -> int:
    """Trials that processes of this search are at."""
    running = (t for t in study.get_trials(deepcopy=False) if t.state is TrialState.RUNNING)
    return sum(t.user_attrs.get("search") == search for t in running)


def _line(study: optuna.Study, trial: FrozenTrial, assignment: Assignment) -> str:
    """One line of progress: this trial, and the best so far."""
    best = best_trial(study.get_trials(deepcopy=False), assignment.plan.goal)
    current = "none fits yet" if best is None else f"best #{best.number} {_figures(best)}"
    chain = chain_id(stages_of(trial)) if "stages" in trial.user_attrs else "?"
    return f"[{counted(study)}/{assignment.trials}] #{trial.number} {chain}: {_figures(trial)} | {current}"


def _figures(trial: FrozenTrial) -> str:
    a = trial.user_attrs
    if trial.state is TrialState.FAIL:
        return f"failed: {a.get('failed', 'interrupted')}"
    if a.get("stopped_at"):
        return f"stopped after {a['stopped_at']}, drop {a['quality_drop']:.2f}"
    return f"{a['compression']:.2f}× smaller, {a['speedup']:.2f}× faster, drop {a['quality_drop']:.2f}"

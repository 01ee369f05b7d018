"""A search: the recommended chains and their parameters in one Optuna study, the winner run and verified."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from advisor.execute import Progress, RunResult, open_pipeline, run_plan, silent
from advisor.plans import save_plan
from advisor.studies.front import best_trial, nearest_miss, pareto_front, trial_rows
from advisor.studies.objective import OBJECTIVES, Objective, stages_of
from advisor.studies.space import Step, chain_id, starting_point
from knowledge.files import write_text
from knowledge.layers import LayerTable
from knowledge.values import Diverged, Estimate, InputError, Plan, Stage

if TYPE_CHECKING:
    from backends.runner import Pipeline

Estimator = Callable[[LayerTable, Sequence[Stage]], Estimate]
PARETO_SCHEMA = "advisor.pareto/1"
SQLITE_TIMEOUT_SECONDS = 60
HEARTBEAT_SECONDS = 20
HAD_THEIR_TURN = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING)


@dataclass(frozen=True)
class SearchResult:
    """A finished search: folder, trials, best plan and its verified run; no best plan where nothing fits."""

    folder: Path
    pareto: dict[str, Any]
    best_plan: Plan | None
    run: RunResult | None

    @property
    def exit_code(self) -> int:
        return self.run.exit_code if self.run else 1


@dataclass(frozen=True)
class Task:
    """All that a worker process needs to take part in a study."""

    plan: Plan  # model, data, workload, budget; its stages are not used
    chains: tuple[tuple[Step, ...], ...]
    storage: str
    study: str
    trials: int
    deadline: float | None  # of time.time()


def search_chains(
    plan: Plan,
    chains: Sequence[Sequence[Step]],
    out: Path,
    *,
    trials: int,
    storage: str | None = None,
    time_budget_seconds: float | None = None,
    workers: int = 1,
    recommendation: dict[str, Any] | None = None,
    estimate: Estimator | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Search `chains` and their parameters under the plan's budget; run and verify the best one into `out/best`.

    The study is kept in `storage` (SQLite in `out` by default): the same call again goes on where it stopped. Raises
    InputError on anything wrong with model, data or storage; KeyboardInterrupt leaves the study intact.
    """
    pipeline = open_pipeline(plan)  # a bad model or bad data leave no folder behind
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    progress(f"baseline: {pipeline.baseline.file_bytes / 1e6:.2f} MB")
    shared = Task(
        plan=plan,
        chains=tuple(tuple(chain) for chain in chains if chain),
        storage=storage or f"sqlite:///{(out / 'study.db').resolve()}",
        study=study_name(plan, chains, pipeline),
        trials=trials,
        deadline=time.time() + time_budget_seconds if time_budget_seconds else None,
    )
    study = _create(shared, pipeline)
    started = time.perf_counter()
    if workers > 1:
        _in_processes(shared, workers, study, progress)
    else:
        _optimize(shared, pipeline, study, progress)
    pareto = _pareto(study, plan, pipeline, time.perf_counter() - started)
    write_text(out / "pareto.json", json.dumps(pareto, indent=1))
    best = _best_plan(plan, study, pipeline, estimate)
    return _finish(out, best, study, pareto, pipeline, recommendation, progress)


def study_name(plan: Plan, chains: Sequence[Sequence[Step]], pipeline: Pipeline) -> str:
    """One name per question: another model, budget, workload or code version is another study."""
    from backends.store import digest

    question = plan.model_dump(mode="json", exclude={"stages", "estimate", "reasons"})
    return f"{plan.model}-{digest(pipeline.root_key, question, [chain_id(c) for c in chains])[:12]}"


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Any Optuna storage; SQLite waits for other writers. Raises InputError."""
    try:
        if url.startswith("sqlite"):
            arguments = {"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                # a trial whose process was killed is found out by its silence
                return optuna.storages.RDBStorage(
                    url,
                    engine_kwargs=arguments,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=3 * HEARTBEAT_SECONDS,
                )
        return optuna.storages.get_storage(url)
    except (SQLAlchemyError, ImportError, ValueError, OSError) as error:
        problem = f"cannot be opened ({' '.join(str(error).split())[:200]})"
        raise InputError("storage", url, problem, "give an Optuna URL such as sqlite:///study.db") from error


def _create(task: Task, pipeline: Pipeline) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _open_study(task, seed=task.plan.seed, create=True)
    had_their_turn = {t.user_attrs.get("chain") for t in study.get_trials(deepcopy=False) if t.state in HAD_THEIR_TURN}
    for chain in task.chains:  # every recommended chain gets its turn before the sampler takes over
        if (name := chain_id(chain)) not in had_their_turn:
            study.enqueue_trial(starting_point(chain, pipeline.original_layers), user_attrs={"chain": name})
    return study


def _open_study(task: Task, seed: int, create: bool = False) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        startup = max(len(task.chains), min(10, task.trials // 3))
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=startup)
        storage = open_storage(task.storage)
        if not create:
            return optuna.load_study(study_name=task.study, storage=storage, sampler=sampler)
        directions = [
            StudyDirection.MINIMIZE if d == "minimize" else StudyDirection.MAXIMIZE
            for _, d in OBJECTIVES[task.plan.goal]
        ]
        return optuna.create_study(
            study_name=task.study, storage=storage, sampler=sampler, directions=directions, load_if_exists=True
        )


def _optimize(task: Task, pipeline: Pipeline, study: optuna.Study, progress: Progress) -> None:
    """Run trials until the study holds as many as asked for, or the time is up."""
    objective = Objective(pipeline, task.chains, task.plan.budget, task.plan.goal)

    def report(study: optuna.Study, trial: FrozenTrial) -> None:
        progress(_line(study, trial, task))
        if _finished(study) >= task.trials:
            study.stop()

    if _finished(study) >= task.trials:
        return
    left = None if task.deadline is None else max(0.0, task.deadline - time.time())
    study.optimize(objective, timeout=left, callbacks=[report], catch=(Diverged,))


def _worker(task: Task, number: int, workers: int) -> None:
    """One of several processes on the same study."""
    import torch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    study = _open_study(task, seed=task.plan.seed + 1000 * number)
    _optimize(task, open_pipeline(task.plan), study, silent)


def _in_processes(task: Task, workers: int, study: optuna.Study, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_worker, args=(task, n + 1, workers)) for n in range(workers)]
    for process in processes:
        process.start()
    try:
        told: set[int] = set()
        while any(p.is_alive() for p in processes):
            time.sleep(0.5)
            for trial in study.get_trials(deepcopy=False):
                if trial.state.is_finished() and trial.number not in told:
                    told.add(trial.number)
                    progress(_line(study, trial, task))
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()


def _finished(study: optuna.Study) -> int:
    """Trials that count: one that repeats another's stages costs nothing, and only every third of them counts."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    repeats = sum("same_as" in t.user_attrs for t in trials)
    return len(trials) - repeats + repeats // 3


def _line(study: optuna.Study, trial: FrozenTrial, task: Task) -> str:
    """One line of progress: this trial, and the best so far."""
    best = best_trial(study.get_trials(deepcopy=False), task.plan.goal)
    current = "none fits yet" if best is None else f"best #{best.number} {_figures(best)}"
    chain = chain_id(stages_of(trial)) if "stages" in trial.user_attrs else "?"
    return f"[{_finished(study)}/{task.trials}] #{trial.number} {chain}: {_figures(trial)} | {current}"


def _figures(trial: FrozenTrial) -> str:
    a = trial.user_attrs
    if trial.state is TrialState.FAIL:
        return "failed"
    if a.get("stopped_at"):
        return f"stopped after {a['stopped_at']}, drop {a['quality_drop']:.2f}"
    return f"{a['compression']:.2f}× smaller, {a['speedup']:.2f}× faster, drop {a['quality_drop']:.2f}"


def _pareto(study: optuna.Study, plan: Plan, pipeline: Pipeline, seconds: float) -> dict[str, Any]:
    trials = study.get_trials(deepcopy=False)
    best = best_trial(trials, plan.goal)
    return {
        "schema": PARETO_SCHEMA,
        "goal": plan.goal,
        "study": study.study_name,
        "seconds": seconds,
        "baseline": {"size_bytes": pipeline.baseline.file_bytes, "quality": pipeline.baseline.quality.value},
        "trials": trial_rows(trials),
        "front": [t.number for t in pareto_front(trials)],
        "best": None if best is None else best.number,
        "stages_requested": sum(t.user_attrs.get("stages_requested", 0) for t in trials),
        "stages_executed": sum(t.user_attrs.get("stages_executed", 0) for t in trials),
    }


def _best_plan(plan: Plan, study: optuna.Study, pipeline: Pipeline, estimate: Estimator | None) -> Plan | None:
    """The plan of the best trial, with what it was expected to give."""
    best = best_trial(study.get_trials(deepcopy=False), plan.goal)
    if best is None:
        return None
    stages = stages_of(best)
    expected = estimate(pipeline.original_layers, stages) if estimate else None
    return plan.model_copy(update={"stages": stages, "estimate": expected})


def _finish(
    out: Path,
    best: Plan | None,
    study: optuna.Study,
    pareto: dict[str, Any],
    pipeline: Pipeline,
    recommendation: dict[str, Any] | None,
    progress: Progress,
) -> SearchResult:
    """Write the baseline, run the best plan, write the report."""
    from advisor.report import write_study_report

    (out / "baseline").mkdir(exist_ok=True)
    shutil.copyfile(pipeline.file(pipeline.baseline), out / "baseline" / "model.onnx")
    run = None
    if best is not None:
        save_plan(best, out / "best-plan.yaml")
        run = run_plan(best, out / "best", pipeline=pipeline, recommendation=recommendation, progress=progress)
    else:
        near = nearest_miss(study.get_trials(deepcopy=False))
        pareto["nearest"] = None if near is None else near.number
        write_text(out / "pareto.json", json.dumps(pareto, indent=1))
    write_study_report(out, pareto, recommendation, run.run if run else None)
    return SearchResult(out, pareto, best, run)

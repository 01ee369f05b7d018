"""A search: the recommended chains and their parameters in one Optuna study, the winner run and verified."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from advisor.execute import RunResult, open_pipeline, run_plan
from advisor.folders import check_study_folder, make_folder, study_question
from advisor.plans import save_plan
from advisor.progress import Progress, silent
from advisor.recording import record_trials
from advisor.studies.front import best_trial, nearest_miss, pareto_front, trial_rows
from advisor.studies.objective import stages_of
from advisor.studies.space import Step
from advisor.studies.storage import Assignment, create_study, open_storage
from advisor.studies.trials import optimize, optimize_in_processes
from knowledge.files import copy_file, write_text
from knowledge.layers import LayerTable
from knowledge.values import Estimate, InputError, Plan, RunFailed, Stage

if TYPE_CHECKING:
    from backends.runner import Pipeline

Estimator = Callable[[LayerTable, Sequence[Stage]], Estimate]
PARETO_SCHEMA = "advisor.pareto/1"


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
    InputError on anything wrong with model, data, storage or folder; KeyboardInterrupt leaves the study intact.
    """
    out = Path(out)
    check_study_folder(out, plan)
    if storage:
        open_storage(storage)
    pipeline = open_pipeline(plan)
    if pipeline.source.info.note:
        progress(f"warning: {pipeline.source.info.note}")
    progress(f"baseline: {pipeline.baseline.file_bytes / 1e6:.2f} MB")  # a bad model, data or metric leave no folder
    made = make_folder(out)
    assignment = Assignment(
        plan=plan,
        chains=tuple(tuple(chain) for chain in chains if chain),
        storage=storage or f"sqlite:///{(out / 'study.db').resolve()}",
        study=study_name(plan, chains, pipeline),
        trials=trials,
        deadline=time.time() + time_budget_seconds if time_budget_seconds else None,
    )
    try:
        study = create_study(assignment, pipeline.original_layers)
    except (InputError, RunFailed):
        if made:
            shutil.rmtree(out)
        raise
    started = time.perf_counter()
    if workers > 1:
        optimize_in_processes(assignment, workers, study, progress)
    else:
        optimize(assignment, pipeline, study, progress)
    record_trials(plan, pipeline, study.get_trials(deepcopy=False), progress)
    pareto = _pareto(study, plan, pipeline, time.perf_counter() - started)
    write_text(out / "pareto.json", json.dumps(pareto, indent=1))
    best = _best_plan(plan, study, pipeline, estimate)
    return _finish(out, best, study, pareto, pipeline, recommendation, progress)


def study_name(plan: Plan, chains: Sequence[Sequence[Step]], pipeline: Pipeline) -> str:
    """One name per question: another model, data, budget, workload, search space or code version is another study."""
    from backends.store import digest

    data = pipeline.source.data
    splits = [s.fingerprint() for s in (data.train, data.calibration, data.search, data.verification)]
    tried = [[(s.technique, s.params, s.ranges) for s in chain] for chain in chains]
    return f"{plan.model}-{digest(pipeline.root_key, study_question(plan), splits, tried)[:12]}"


def _pareto(study: optuna.Study, plan: Plan, pipeline: Pipeline, seconds: float) -> dict[str, Any]:
    trials = study.get_trials(deepcopy=False)
    best = best_trial(trials, plan.goal)
    return {
        "schema": PARETO_SCHEMA,
        "goal": plan.goal,
        "study": study.study_name,
        "question": study_question(plan),
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

    copy_file(pipeline.file(pipeline.baseline), out / "baseline" / "model.onnx")
    run = None
    if best is not None:
        save_plan(best, out / "best-plan.yaml")
        run = run_plan(
            best, out / "best", pipeline=pipeline, recommendation=recommendation, over=True, progress=progress
        )
    else:
        near = nearest_miss(study.get_trials(deepcopy=False))
        pareto["nearest"] = None if near is None else near.number
        write_text(out / "pareto.json", json.dumps(pareto, indent=1))
    write_study_report(out, pareto, recommendation, run.run if run else None)
    return SearchResult(out, pareto, best, run)

"""Where a study lives, and how each process opens it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from uuid import uuid4

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from advisor.studies.objective import OBJECTIVES
from advisor.studies.space import Step, chain_id, starting_point
from knowledge.files import disk_full
from knowledge.layers import LayerTable
from knowledge.values import DiskFull, InputError, Plan

SQLITE_TIMEOUT_SECONDS = 60
HEARTBEAT_SECONDS = 20
HAD_THEIR_TURN = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING)


@dataclass(frozen=True)
class Assignment:
    """All that a process needs to take part in a study."""

    plan: Plan  # model, data, workload, budget; its stages are not used
    chains: tuple[tuple[Step, ...], ...]
    storage: str
    study: str
    trials: int
    deadline: float | None  # of time.time()
    search: str = field(default_factory=lambda: uuid4().hex)  # this call's: tells its trials from those of others


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Any Optuna storage; SQLite waits for other writers. Raises InputError, DiskFull."""
    try:
        if not url.startswith("sqlite"):
            return optuna.storages.get_storage(url)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # a trial whose process was killed is found out by its silence
            return optuna.storages.RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}},
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=3 * HEARTBEAT_SECONDS,
            )
    except (SQLAlchemyError, ImportError, ValueError, OSError, optuna.exceptions.StorageInternalError) as error:
        if disk_full(error):
            raise DiskFull(f"{url}: the disk is full; no trial can be kept: free some space and run again") from error
        problem = f"cannot be opened ({' '.join(str(error).split())[:200]})"
        raise InputError("storage", url, problem, "give an Optuna URL such as sqlite:///study.db") from error


def create_study(assignment: Assignment, layers: LayerTable) -> optuna.Study:
    """The assignment's study, made or found; every recommended chain gets its turn before the sampler takes over."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = [
        StudyDirection.MINIMIZE if direction == "minimize" else StudyDirection.MAXIMIZE
        for _, direction in OBJECTIVES[assignment.plan.goal]
    ]
    storage = open_storage(assignment.storage)
    optuna.create_study(study_name=assignment.study, storage=storage, directions=directions, load_if_exists=True)
    study = open_study(assignment, assignment.plan.seed)
    had_their_turn = {t.user_attrs.get("chain") for t in study.get_trials(deepcopy=False) if t.state in HAD_THEIR_TURN}
    for chain in assignment.chains:
        if (name := chain_id(chain)) not in had_their_turn:
            study.enqueue_trial(starting_point(chain, layers), user_attrs={"chain": name})
    return study


def open_study(assignment: Assignment, seed: int) -> optuna.Study:
    """The study as one process sees it, with a sampler of its own seed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    startup = max(len(assignment.chains), min(10, assignment.trials // 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=startup)
    return optuna.load_study(study_name=assignment.study, storage=open_storage(assignment.storage), sampler=sampler)

"""The three calls of the Python API, with the command line's options: `recommend(arch="cnn", target="mobile")`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.progress import Progress, silent

if TYPE_CHECKING:
    from advisor.execute import RunResult
    from advisor.recommendation import Recommendation
    from advisor.studies.study import SearchResult
    from knowledge.values import Plan


def recommend(model: str = "", **options: Any) -> Recommendation:
    """Ranked chains for a model and a target, from what is known; nothing is run. Raises InputError."""
    from advisor.advise import advise
    from advisor.request import Request

    return advise(Request.parse(model=model, **options))


def search(
    model: str,
    *,
    out: Path | str,
    trials: int = 24,
    time_budget_seconds: float | None = None,
    storage: str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> SearchResult:
    """Search the recommended chains, run and verify the best plan into `out`. Raises InputError, RunFailed."""
    from advisor.request import Request
    from advisor.studies.search import search as search_request

    return search_request(
        Request.parse(model=model, **options),
        trials,
        Path(out),
        storage=storage,
        time_budget_seconds=time_budget_seconds,
        workers=workers,
        progress=progress or silent,
    )


def run(
    plan: Plan | Path | str,
    out: Path | str,
    *,
    allow_code: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Carry out a plan (or a plan file) into the run folder `out`. Raises InputError, RunFailed."""
    from advisor.execute import run_plan
    from advisor.plans import load_plan

    checked = load_plan(Path(plan), allow_code) if isinstance(plan, Path | str) else plan
    return run_plan(checked, Path(out), allow_code=allow_code, progress=progress or silent)

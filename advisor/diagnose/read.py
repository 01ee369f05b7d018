"""What a run or study folder holds, finished or not."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from advisor.plans import read_plan
from advisor.report import read_json, read_pareto, read_run_file
from advisor.request import Request
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError, Plan, Quality

Json = Mapping[str, Any]
STUDY_FILE = "study.db"


@dataclass(frozen=True)
class Run:
    """A run folder. `run` is None until it is finished; `done` are the stages that the folder keeps."""

    folder: Path
    plan: Plan
    run: Json | None
    done: tuple[Json, ...]

    @property
    def verification(self) -> Json:
        """What was measured on the file; of finished runs only."""
        assert self.run is not None
        found: Json = self.run["verification"]
        return found

    @property
    def stages(self) -> list[Json]:
        """The stages that are plan stages, with what they did."""
        return [s for s in (self.run["stages"] if self.run else self.done) if s["technique"] in CATALOG]

    def losses(self) -> list[float]:
        """What each stage lost, in the budget's unit; negative where it won something back. Finished runs only."""
        assert self.run is not None
        before = Quality.model_validate(self.run["baseline"]["quality"])
        unit, total, lost = self.plan.budget.max_drop.unit, 0.0, []
        for stage in self.stages:
            now = Quality.model_validate(stage["quality"]).drop_from(before, unit)
            lost.append(now - total)
            total = now
        return lost


@dataclass(frozen=True)
class Study:
    """A study folder. `pareto` is None until the search has ended, `best` until its winner's run has begun."""

    folder: Path
    pareto: Json | None
    plan: Plan | None  # of the winner
    best: Run | None
    request: Request | None  # what was asked, where it is kept

    @property
    def model(self) -> str:
        """The model that was searched for."""
        if self.plan is not None:
            return self.plan.model
        name = str(self.pareto["study"]) if self.pareto is not None else study_name(self.folder / STUDY_FILE)
        return name.rpartition("-")[0] or name


def read_folder(folder: Path) -> Run | Study:
    """The run or the study in a folder; raises InputError where there is neither, or it cannot be read."""
    folder = Path(folder)
    if (folder / "pareto.json").exists() or (folder / STUDY_FILE).exists():
        return _study(folder)
    if (folder / "plan.yaml").exists():
        return _run(folder)
    if not folder.is_dir():
        raise InputError("run", folder, "no such folder", "give a folder that `advisor run` or `advisor search` wrote")
    raise InputError("run", folder, "holds no run and no study", "give a folder with plan.yaml or pareto.json")


def _run(folder: Path) -> Run:
    plan = read_plan(folder / "plan.yaml")
    run = read_run_file(folder / "run.json") if (folder / "run.json").exists() else None
    if run is not None and "baseline" not in run:
        raise InputError("run", folder / "run.json", "is incomplete", "run it again")
    if run is not None and not run.get("verification"):
        raise InputError("run", folder, "was never verified", "run `advisor verify` on it first")
    return Run(folder, plan, run, tuple(_done(folder, plan)))


def _done(folder: Path, plan: Plan) -> list[Json]:
    """Records of the plan's stages that are kept, up to the first that is not."""
    found = []
    for number, stage in enumerate(plan.stages, 1):
        record = folder / "stages" / f"{number:02d}-{stage.technique}" / "record.json"
        if not record.exists():
            break
        try:
            found.append(json.loads(record.read_text()))
        except (OSError, ValueError) as error:
            problem = f"cannot be read ({' '.join(str(error).split())})"
            raise InputError("run", record, problem, "remove it and run again") from None
    return found


def _study(folder: Path) -> Study:
    pareto = read_pareto(folder / "pareto.json") if (folder / "pareto.json").exists() else None
    plan = read_plan(folder / "best-plan.yaml") if (folder / "best-plan.yaml").exists() else None
    best = _run(folder / "best") if (folder / "best" / "plan.yaml").exists() else None
    return Study(folder, pareto, plan, best, _asked(folder, best))


def _asked(folder: Path, best: Run | None) -> Request | None:
    """The request that a search answered, where a recommendation is kept; None where it is of another version."""
    file = folder / "recommendation.json"
    kept: Any = best.run.get("recommendation") if best is not None and best.run is not None else None
    kept = read_json(file) if file.exists() else kept
    try:
        return Request.model_validate(kept["request"]) if kept else None
    except (ValidationError, KeyError):
        return None


def study_name(database: Path) -> str:
    """Name of the newest study in an SQLite storage; raises InputError."""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as opened:
            row = opened.execute("select study_name from studies order by study_id desc limit 1").fetchone()
    except sqlite3.Error as error:
        raise InputError("run", database, f"cannot be read ({error})", "search again") from None
    if row is None:
        raise InputError("run", database, "holds no study", "search again")
    return str(row[0])

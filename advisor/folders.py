"""What a command writes, where the user said: a folder that is made, taken up or refused, or a single file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from advisor.plans import read_plan
from knowledge.files import disk_full, write_bytes
from knowledge.values import DiskFull, InputError, Plan

OTHER_FOLDER = "name another folder, or remove this one"
SHOWN = 3  # names of what a folder holds


def question(plan: Plan) -> dict[str, Any]:
    """What a plan asks for, without what is expected of it and why."""
    return plan.model_dump(mode="json", by_alias=True, exclude={"estimate", "reasons"})


def study_question(plan: Plan) -> dict[str, Any]:
    """What a search asks for: all that a plan says beside its stages."""
    return {name: value for name, value in question(plan).items() if name != "stages"}


def check_run_folder(out: Path, plan: Plan) -> None:
    """Raise InputError where `out` holds something else than a run: of another plan, once it is finished."""
    held = _held(out)
    if not held:
        return
    known = plan_in(out / "plan.yaml")
    if known is None:
        raise InputError("out", out, f"is no run folder: it holds {_names(held)}", OTHER_FOLDER)
    if "run.json" in held and question(known) != question(plan):
        raise InputError("out", out, f"holds the finished run of another plan, {_words(question(known))}", OTHER_FOLDER)


def check_study_folder(out: Path, plan: Plan) -> None:
    """Raise InputError where `out` holds something else than a search: for another question, once it is finished."""
    held = _held(out)
    if held and not {"study.db", "pareto.json"} & set(held):
        raise InputError("out", out, f"is no study folder: it holds {_names(held)}", OTHER_FOLDER)
    if "pareto.json" in held:
        known = _json(out / "pareto.json").get("question") or {}
        if known != study_question(plan):
            raise InputError("out", out, f"holds the finished search of another question{_of(known)}", OTHER_FOLDER)


def make_folder(out: Path) -> bool:
    """Make the folder with those above it; False where it was there. Raises InputError where it cannot be made."""
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if disk_full(error):
            raise DiskFull(f"{out}: the disk is full; nothing was written there: free some space") from error
        raise InputError("out", out, f"cannot be made ({error.strerror})", "name a folder in one of yours") from None
    return made


def write_file(out: Path, data: bytes) -> None:
    """Replace a file that the user named in one step. Raises InputError where it cannot be written."""
    if out.is_dir():
        raise InputError("out", out, "is a folder", "name a file in it")
    try:
        write_bytes(out, data)
    except OSError as error:
        if disk_full(error):
            raise DiskFull(f"{out}: the disk is full; nothing was written there: free some space") from error
        raise InputError("out", out, f"cannot be written ({error.strerror})", "name another file") from None


def plan_in(file: Path) -> Plan | None:
    """The plan that a run folder was made for; None where there is none, or where it cannot be read."""
    try:
        return read_plan(file)
    except InputError:
        return None


def _held(out: Path) -> list[str]:
    """Names in the folder, hidden ones aside; raises InputError where it is a file, or cannot be read."""
    if not out.exists():
        return []
    if not out.is_dir():
        raise InputError("out", out, "is a file", "name a folder")
    try:
        return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError("out", out, f"cannot be read ({error.strerror})", OTHER_FOLDER) from None


def _names(held: list[str]) -> str:
    return ", ".join([*held[:SHOWN], *(["…"] if len(held) > SHOWN else [])])


def _words(asked: dict[str, Any]) -> str:
    """A plan's question in a few words."""
    chain = " → ".join(stage["technique"] for stage in asked["stages"]) or "nothing"
    return f"{asked['model']} for {asked['target']}: {chain}"


def _of(asked: dict[str, Any]) -> str:
    """A search's question in a few words."""
    return f", {asked['model']} for {asked['target']}" if asked else ""


def _json(file: Path) -> dict[str, Any]:
    """A JSON object, or nothing where the file holds none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

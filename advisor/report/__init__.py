"""Reports of runs and studies: Markdown, and one HTML file that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.report.card import model_card
from advisor.report.render import render_html, render_markdown
from advisor.report.view import Json, run_report, study_report
from knowledge.files import write_text
from knowledge.values import InputError

CARD = Path("artifact") / "README.md"
# what every report stands on
RUN_FIELDS: Mapping[str, type] = {"plan": dict, "stages": list, "warnings": list}
VERIFICATION_FIELDS: Mapping[str, type] = {
    "baseline": dict, "compressed": dict, "speedup": dict, "verdict": dict, "explanations": list, "environment": dict,
}  # fmt: skip
STUDY_FIELDS: Mapping[str, type] = {"trials": list, "front": list, "goal": str, "best": object}


def write_run_report(folder: Path, run: Json) -> tuple[Path, ...]:
    """Write report.html, report.md and the artifact's model card into a run folder; returns what was written."""
    report = run_report(run)
    return _write(
        Path(folder),
        {
            Path("report.html"): render_html(report),
            Path("report.md"): render_markdown(report),
            CARD: model_card(run),
        },
    )


def write_study_report(folder: Path, pareto: Json, recommendation: Json | None, run: Json | None) -> tuple[Path, ...]:
    """Write report.html and report.md into a study folder; `run` is the best plan's, None where nothing fitted."""
    report = study_report(pareto, recommendation, run)
    pages = {Path("report.html"): render_html(report), Path("report.md"): render_markdown(report)}
    return _write(Path(folder), pages)


def rewrite_reports(folder: Path) -> tuple[Path, ...]:
    """Write the reports of a run or study folder again from its JSON files; raises InputError where it is neither."""
    folder = Path(folder)
    if (folder / "pareto.json").exists():
        pareto = read_pareto(folder / "pareto.json")
        run = read_run_file(folder / "best" / "run.json") if (folder / "best" / "run.json").exists() else None
        advice = folder / "recommendation.json"
        recommendation = read_json(advice) if advice.exists() else (run or {}).get("recommendation")
        return write_study_report(folder, pareto, recommendation, run)
    return write_run_report(folder, read_run(folder))


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a run folder, or of a study's best run; raises InputError."""
    folder = Path(folder)
    for file in (folder / "run.json", folder / "best" / "run.json"):
        if file.exists():
            return read_run_file(file)
    if not folder.exists():
        raise InputError("run", folder, "no such folder", "give a folder that `advisor run` or `advisor search` wrote")
    raise InputError("run", folder, "is no finished run: run.json is missing", "finish it with `advisor run`")


def read_run_file(file: Path) -> dict[str, Any]:
    """A `run.json`; raises InputError where it is incomplete."""
    run = read_json(file)
    _check_fields(run, RUN_FIELDS, file)
    if run.get("verification"):
        _check_fields(run["verification"], VERIFICATION_FIELDS, file)
    return run


def read_pareto(file: Path) -> dict[str, Any]:
    """A `pareto.json`; raises InputError where it is incomplete."""
    pareto = read_json(file)
    _check_fields(pareto, STUDY_FIELDS, file)
    return pareto


def _check_fields(found: Any, fields: Mapping[str, type], file: Path) -> None:
    for name, kind in fields.items():
        if not isinstance(found, dict) or name not in found or not isinstance(found[name], kind):
            raise InputError("run", file, f"is incomplete: it holds no {name}", "run it again")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON mapping from a file; raises InputError."""
    try:
        found = json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError("run", file, f"cannot be read ({' '.join(str(error).split())})", "run again") from None
    if not isinstance(found, dict) or not str(found.get("schema", "")).startswith("advisor."):
        raise InputError("run", file, "was not written by advisor", "give a run or study folder")
    return found


def _write(folder: Path, pages: dict[Path, str]) -> tuple[Path, ...]:
    for name, text in pages.items():
        write_text(folder / name, text)
    return tuple(folder / name for name in pages)

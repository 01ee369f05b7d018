"""What is wrong with a plan file, what would disappoint, and how to mend it. Nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from advisor.folders import write_file
from advisor.lint.checks import findings_of
from advisor.lint.edit import with_settings
from advisor.lint.findings import Finding, Patch, Report
from advisor.lint.fix import mended
from advisor.lint.read import read_draft
from advisor.plans import read_raw
from advisor.progress import Progress, silent
from knowledge.values import InputError

__all__ = ["Finding", "Patch", "Report", "lint_plan"]


def lint_plan(
    path: Path,
    *,
    fix: bool = False,
    out: Path | None = None,
    settings: Sequence[str] = (),
    allow_code: bool = False,
    say: Progress = silent,
) -> Report:
    """Every finding about a plan file.

    `settings` are parameters to look at it with, as `technique.parameter=value`. With `fix` the plan is mended first
    and written: to `out`, or over the file, which is then kept beside as it was. The user's own code is looked at only
    with `allow_code`. Raises InputError where there is no plan to be read, or a setting means nothing.
    """
    path = Path(path)
    if out is not None and not fix:
        raise InputError("out", out, "nothing is written without --fix", "add --fix")
    written = read_raw(path)
    raw, changes = with_settings(written, settings, allow_code)
    kept = target = ""
    if fix:
        raw, mends = mended(raw, allow_code)
        changes += mends
        if out is not None:
            target = str(out)
            _write(out, raw)
        elif changes:
            kept, target = str(_keep(path)), str(path)
            _write(path, raw)
            say(f"comments are not kept; the plan as it was: {kept}")
    findings = findings_of(read_draft(raw), allow_code)
    return Report(plan=str(path), findings=findings, changes=changes, written=target, original=kept)


def _keep(path: Path) -> Path:
    """A copy of the file under a name beside it that is free."""
    kept, number = path.with_name(f"{path.name}.orig"), 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.orig{number}")
    write_file(kept, path.read_bytes())
    return kept


def _write(path: Path, raw: dict[str, Any]) -> None:
    text: str = yaml.dump(raw, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=120)
    write_file(path, text.encode())

"""`advisor lint` and `advisor diagnose`: parse, call one function, show."""

from __future__ import annotations

from pathlib import Path

import click

from advisor.show import console, options

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("plan", type=FILE)
@click.option("--fix", is_flag=True, help="Write PLAN with everything mechanical put right.")
@click.option("--out", "-o", metavar="FILE", type=FILE, help="Where --fix writes. [PLAN, kept as PLAN.orig]")
@click.option("--set", "settings", multiple=True, metavar="T.PARAM=X", help="Look at it with a parameter changed.")
@options.allow_code
@options.as_json
def lint(plan: Path, fix: bool, out: Path | None, settings: tuple[str, ...], allow_code: bool, as_json: bool) -> int:
    """Say what is wrong with PLAN, and how to mend it.

    Orders and parameters that are refused, common mistakes, and limits that
    will be missed, each with its reason. Nothing is run.

    \b
    Example:
      advisor lint study/best-plan.yaml
    """
    from advisor.lint import lint_plan
    from advisor.show.checks import show_lint

    report = lint_plan(plan, fix=fix, out=out, settings=settings, allow_code=allow_code, say=console.progress)
    found = report.to_json()
    console.answer(as_json, found, lambda: show_lint(found))
    return report.exit_code


@click.command()
@click.argument("folder", type=FILE, metavar="RUN|STUDY")
@options.as_json
def diagnose(folder: Path, as_json: bool) -> int:
    """Say why a run or a search ended as it did.

    What was missed and where it was lost, why a gain is not in the file, what
    is unfinished: each with a command to try next. Nothing is run.

    \b
    Example:
      advisor diagnose run
    """
    from advisor.diagnose import diagnose as diagnosed
    from advisor.show.checks import show_diagnosis

    report = diagnosed(folder)
    found = report.to_json()
    console.answer(as_json, found, lambda: show_diagnosis(found))
    return report.exit_code

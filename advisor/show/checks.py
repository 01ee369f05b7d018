"""What lint and diagnose say, on the terminal."""

from __future__ import annotations

from collections import Counter

import click

from advisor.show.console import clean, paragraph
from advisor.texts import Json

COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}
DIAGNOSED = {"problem": "red", "cause": "yellow", "note": "cyan"}


def show_lint(report: Json) -> None:
    """What was changed, or tried, then the findings, the gravest first."""
    click.secho(f"{report['plan']}: {counts_text(report['findings'])}", bold=True)
    for change in report["changes"]:
        paragraph(change, first="  changed  " if report["written"] else "  with  ")
    if report["written"] not in ("", report["plan"]):
        click.echo(f"  written to {report['written']}")
    for finding in report["findings"]:
        click.echo()
        level = click.style(f"{finding['level']:8}", fg=COLORS[finding["level"]])
        paragraph(f"{finding['where']}: {finding['observed']}", first=level, hang=" " * 8)
        paragraph(f"{finding['why']} [{finding['source']}]", indent=" " * 8)
        by_hand = finding["patch"] is None
        paragraph(finding["fix"] if by_hand else f"{finding['fix']} (--fix does it)", first="        fix: ")


def counts_text(findings: list[Json]) -> str:
    """
    >>> counts_text([{"level": "error"}, {"level": "note"}, {"level": "note"}])
    '1 error, 2 notes'
    """
    counts = Counter(f["level"] for f in findings)
    said = [f"{counts[level]} {level}{'s' if counts[level] > 1 else ''}" for level in COLORS if counts[level]]
    return ", ".join(said) or "nothing to object"


def show_diagnosis(report: Json) -> None:
    """The verdict, then what explains it, each with commands to try; a command is one line, to be copied."""
    click.secho(f"{report['folder']}: {report['verdict']}", bold=True)
    for found in report["diagnoses"]:
        click.echo()
        level = click.style(f"{found['level']:8}", fg=DIAGNOSED[found["level"]])
        paragraph(f"{found['about']}: {found['seen']}", first=level, hang=" " * 8)
        paragraph(f"{found['why']} [{found['source']}]", indent=" " * 8)
        paragraph(found["advice"], first="        try: ")
        for command in found["commands"]:
            click.echo(clean(f"          {command}"))

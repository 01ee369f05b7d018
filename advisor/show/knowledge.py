"""Rules, claims, targets, models, presets, facts and what a check found, on the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import click

from advisor.checking.findings import CheckReport, Finding
from advisor.show.console import clean, heading, pairs, paragraph, table
from advisor.texts import Json, claim_text, params_text
from advisor.units import count_text

INDENT = "  "


def show_rules(rows: Sequence[Json]) -> None:
    """Each rule with its condition and conclusions, by tree."""
    for tree, own in itertools.groupby(rows, key=lambda row: row["tree"]):
        heading(clean(tree) or "Rules of no tree")
        for row in own:
            click.secho(f"{INDENT}{clean(row['id'])}", bold=True, nl=False)
            click.echo(f"  {place_text(row['place'])}")
            paragraph(f"when {row['says']['when']}: {'; '.join(row['says']['then'])}", indent=INDENT * 2)
    _ended(rows, "rule", "`advisor explain ID` shows one with its reason and source")


def show_claims(rows: Sequence[Json]) -> None:
    """Each figure with what it is of; what estimates leave out is in brackets."""
    for technique, own in itertools.groupby(
        sorted(rows, key=lambda row: row["technique"]), key=lambda r: r["technique"]
    ):
        heading(technique)
        for row in own:
            status = row["status"] if row["estimate"] else f"({row['status']})"
            what = ", ".join(filter(None, (params_text(row["params"]), f"{claim_text(row)} {status}")))
            paragraph(f"{row['id']}: {what}; {row['model']}; {row['protocol']}", indent=INDENT, hang=INDENT * 3)
    recorded = "those in brackets are for the record only; " if any(not row["estimate"] for row in rows) else ""
    _ended(rows, "figure", f"{recorded}`advisor explain ID` shows the source")


def show_targets(rows: Sequence[Json]) -> None:
    """Each target with its figures and where they come from."""
    for row in rows:
        heading(f"{clean(row['id'])}: {clean(row['about'])}")
        figures = [(name, value) for name, value in row.items() if isinstance(value, dict) and "source" in value]
        pairs([(name, f"{value['value']:g} [{value['source']}]") for name, value in figures], indent=INDENT)
        for name in ("accelerates", "operators"):
            pairs([(f"{name} {what}", f"[{source}]") for what, source in row.get(name, {}).items()], indent=INDENT)
    _ended(rows, "target", "`advisor targets list` compares them")


def show_models(rows: Sequence[Json]) -> None:
    """Each typical model with its size and what it stands for."""
    for row in rows:
        stands = "".join(f", stands for --arch {family}" for family in row["default_for"])
        click.secho(clean(row["id"]), bold=True)
        text = f"{row['info']['family']}, {row['info']['task']}, {count_text(row['built'])} parameters{stands}"
        paragraph(f"{text} [{row['source']}]", indent=INDENT)
    _ended(rows, "typical model", "`advisor recommend ID` plans for one")


def show_presets(rows: Sequence[Json]) -> None:
    """Each preset with its budget and parameters."""
    for row in rows:
        heading(clean(row["id"]))
        paragraph(f"{row['about']} [{row['source']}]", indent=INDENT)
        spent = [("quality to spend", row["max_drop"])] if row["max_drop"] else []
        pairs([*spent, *((name, params_text(params)) for name, params in row["params"].items())], indent=INDENT)
    _ended(rows, "preset", "`advisor recommend --preset ID` starts from one")


def show_facts(rows: Sequence[Json]) -> None:
    """The vocabulary of conditions."""
    last = "what it is [values or unit]"
    shown = []
    for row in rows:
        values = ", ".join(row["values"]) or row["unit"]
        shown.append((row["fact"], row["kind"], str(row["rules"]), row["meaning"] + (f" [{values}]" if values else "")))
    table(("fact", "kind", "rules", last), shown, ("rules",), fold=last)


def show_check(report: CheckReport, notes: bool) -> None:
    """What was found, faults first; notes only where they are asked for."""
    for finding in (*report.findings, *(report.notes if notes else ())):
        _show_finding(finding)
    counted = ", ".join(f"{number} {kind}" for kind, number in report.counts.items())
    cases = "no cases were read: rules may go unexercised" if report.cases is None else _number(report.cases, "case")
    paragraph(f"{_number(len(report.findings), 'finding')} in {counted}; {cases}.")
    if report.notes and not notes:
        paragraph(f"{_number(len(report.notes), 'note')} besides: --notes shows them.")


def _show_finding(finding: Finding) -> None:
    color = "yellow" if finding.note else "red"
    click.secho("note    " if finding.note else "finding ", fg=color, nl=False)
    where = f" ({place_text(finding.place)})" if finding.place else ""
    paragraph(f"{finding.id}{where}: {finding.text}", first="", hang=" " * 8)
    if finding.remedy:
        paragraph(f"→ {finding.remedy}", indent=" " * 8)


def show_new(path: Path, out: str | None) -> None:
    """Where the template was written, and what to do next."""
    click.echo(clean(str(path)))
    folder = f" --knowledge {out}" if out else ""
    paragraph(f"Edit it, then: advisor knowledge check{folder}")


def place_text(place: str) -> str:
    """`file:line`, from here where the file lies below."""
    try:
        return clean(str(Path(place).relative_to(Path.cwd())))
    except ValueError:
        return clean(place)


def _ended(rows: Sequence[Json], name: str, more: str) -> None:
    click.echo()
    paragraph(f"{_number(len(rows), name)}; {more}." if rows else f"no {name} is like that")


def _number(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"

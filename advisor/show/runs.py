"""Runs, studies and comparisons on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from advisor.show.console import heading, paragraph, table
from advisor.texts import Json, chain_text, finished_trials, trial_chain
from advisor.units import bytes_text, ms_text, quality_text, ratio_text, significant

if TYPE_CHECKING:
    from advisor.studies.study import SearchResult


def show_verification(verification: Json, title: str) -> None:
    """The measured table, the verdict and what explains it."""
    from advisor.report.measured import measured, verdict_of

    click.secho(title, bold=True)
    rows = [(r.figure, r.before, r.after, r.change) for r in measured(verification)]
    table(("measured", "uncompressed", "compressed", "change"), rows, ("uncompressed", "compressed"), fold="change")
    state, verdict, misses = verdict_of(verification)
    click.echo()
    click.secho(verdict, fg={"good": "green", "bad": "red"}.get(state))
    for miss in misses:
        paragraph(miss, first="  - ")
    for explanation in verification["explanations"]:
        paragraph(explanation["text"], first="  - ")


def show_run(run: Json, folder: Path) -> None:
    """The outcome of a run, and where its files are."""
    plan = run["plan"]
    show_verification(run["verification"], f"{plan['model']} for {plan['target']}: {chain_text(plan['stages'])}")
    packed = run["verification"].get("packed")
    shown = [("packed weights", folder / "artifact" / packed["file"])] if packed else []
    files = [("artifact", folder / "artifact" / "model.onnx"), *shown, ("report", folder / "report.html")]
    show_files(files)


def show_search(result: SearchResult, folder: Path) -> None:
    """The front of a study, then its best run or the nearest miss."""
    from advisor.report.study import nearest_text

    pareto = result.pareto
    tried = len(finished_trials(pareto))
    front = sorted((t for t in pareto["trials"] if t["number"] in pareto["front"]), key=lambda t: t["size_bytes"])
    if front:
        click.secho(f"{tried} trials; no trial beats these in size, speed and quality at once", bold=True)
        show_trials(front, pareto["best"])
    if result.run is not None:
        click.echo()
        show_run(result.run.run, folder / "best")
        show_files([("best plan", folder / "best-plan.yaml"), ("study report", folder / "report.html")])
        return
    click.secho(f"none of {tried} trials meets the budget", fg="red")
    for text in nearest_text(pareto):
        paragraph(text, first="  ")
    show_files([("study report", folder / "report.html")])


def show_trials(trials: list[Json], best: int | None) -> None:
    rows = [
        (
            str(t["number"]),
            trial_chain(t),
            bytes_text(t["size_bytes"]),
            ratio_text(t["speedup"]),
            f"{t['quality_drop']:.2f}",
            "best" if t["number"] == best else "",
        )
        for t in trials
    ]
    table(
        ("trial", "chain", "size", "faster", "quality lost", ""),
        rows,
        ("trial", "size", "faster", "quality lost"),
        "chain",
    )


def show_files(files: list[tuple[str, Path]]) -> None:
    click.echo()
    for name, path in files:
        if path.exists():
            click.echo(f"{name}: {path}")


def show_comparison(comparison: Json) -> None:
    """The runs by number, then one row of figures for each."""
    runs = comparison["runs"]
    for number, r in enumerate(runs, 1):
        paragraph(f"{r['run']}: {r['chain']} ({r['model']} for {r['target']})", first=f"{number:2}  ")
    click.echo()
    rows = [
        (
            f"{number:2}",
            bytes_text(r["size_bytes"]),
            ratio_text(r["compression"]),
            f"{ratio_text(r['speedup'])} ±{significant((r['speedup_high'] - r['speedup_low']) / 2)}",
            ms_text(r["latency_ms_p50"]),
            quality_text({"value": r["quality"], "unit": r["quality_unit"]}),
            r["quality_change"],
            "met" if r["within_budget"] else "missed",
        )
        for number, r in enumerate(runs, 1)
    ]
    columns = ("", "size", "smaller", "faster", "latency", "quality", "change", "budget")
    table(columns, rows, ("size", "smaller", "faster", "latency", "quality", "change"))
    if comparison["cautions"]:
        heading("Compare with care")
        for text in comparison["cautions"]:
            paragraph(text, first="  - ")

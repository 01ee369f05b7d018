"""Doctor, models, targets and techniques on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from advisor.readiness import NOT_YET
from advisor.show.console import heading, pairs, paragraph, table
from advisor.texts import flat_text
from advisor.units import bytes_text, count_text

if TYPE_CHECKING:
    from advisor.doctor import Diagnosis
    from advisor.inspect import Inspection
    from knowledge.schema import Target

LAYERS_SHOWN = 12


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """What was looked at, then each technique with why it cannot run."""
    for check in diagnosis.checks:
        color = {"ok": "green", "note": "yellow", "missing": "red"}[check.status]
        click.secho(f"{check.status:8}", fg=color, nl=False)
        paragraph(": ".join(filter(None, (f"{check.name} {check.text}", check.remedy))), first="", hang=" " * 8)
    heading("Techniques")
    for found in diagnosis.techniques:
        if found.planned_only:
            continue
        click.secho("runs    " if found.runs else "cannot  ", fg="green" if found.runs else "red", nl=False)
        click.echo(found.technique if found.runs else f"{found.technique}: {found.why_not}")
    if waiting := [t.technique for t in diagnosis.techniques if t.planned_only]:
        click.secho("not yet ", fg="yellow", nl=False)
        paragraph(f"{', '.join(waiting)}: planned with, not carried out", first="", hang=" " * 8)


def show_inspection(model: Inspection, all_layers: bool) -> None:
    """Totals, groups, and the layers that store most."""
    name = f"{model.name}: {model.subfamily or model.family}, {model.task}"
    click.secho(f"{name} (a typical one)" if model.facts.get("typical") else name, bold=True)
    facts = [(k.replace("_", " "), flat_text(v)) for k, v in model.facts.items() if k != "typical"]
    totals = [
        ("weights", f"{model.parameters:,} ({bytes_text(model.stored_bytes)} stored)"),
        ("arithmetic", f"{count_text(model.macs)} multiply-adds per sample"),
        ("embeddings", f"{100 * model.embedding_share:.1f} % of the bytes"),
        ("zeros", f"{100 * model.sparsity:.1f} % of the weights"),
    ]
    pairs([*totals, *facts], indent="  ")
    heading("By kind and role")
    groups = [
        (g.name, str(g.layers), count_text(g.parameters), bytes_text(g.stored_bytes), count_text(g.macs))
        for g in model.groups
    ]
    right = ("layers", "weights", "stored", "multiply-adds")
    table(("", "layers", "weights", "stored", "multiply-adds"), groups, right)
    layers = list(model.layers) if all_layers else sorted(model.layers, key=lambda r: -r["stored_bytes"])[:LAYERS_SHOWN]
    heading("Layers" if all_layers else f"The {len(layers)} largest of {len(model.layers)} layers (all: --layers)")
    rows = [
        (r["path"], r["kind"], _shape(r), str(r["bits"]), bytes_text(r["stored_bytes"]), count_text(r["macs"]))
        for r in layers
    ]
    table(
        ("path", "kind", "shape", "bits", "stored", "multiply-adds"), rows, ("bits", "stored", "multiply-adds"), "path"
    )


def _shape(row: Mapping[str, Any]) -> str:
    text = f"{row['outputs']}×{row['inputs']}" + (f"·{row['kernel']}" if row["kernel"] > 1 else "")
    return f"{row['copies']}× {text}" if row["copies"] > 1 else text


def show_targets(targets: Iterable[Target]) -> None:
    """Each target with what it accelerates and its limits."""
    rows = [
        (
            t.id,
            t.about,
            ", ".join(t.accelerates) or "nothing",
            str(t.threads),
            bytes_text(t.max_size_bytes.value) if t.max_size_bytes else "none",
        )
        for t in targets
    ]
    table(
        ("target", "what it is", "accelerates", "threads", "largest file"),
        rows,
        ("threads", "largest file"),
        "what it is",
    )


def show_techniques(rows: Iterable[Mapping[str, Any]]) -> None:
    """Each technique with its family, what it needs, and whether it runs here."""
    rows = list(rows)
    shown = [(r["id"], r["family"], ", ".join(r["needs"]) or "nothing", _runs(r), r["summary"]) for r in rows]
    table(
        ("technique", "family", "needs", "runs here", "what it does to the model"),
        shown,
        fold="what it does to the model",
    )
    for row in rows:
        if _runs(row) == "no":
            paragraph(f"{row['id']} cannot run here: {row['why_not']}")


def _runs(row: Mapping[str, Any]) -> str:
    return "yes" if row["runs"] else "not yet" if row["why_not"] == NOT_YET else "no"


def show_technique(row: Mapping[str, Any]) -> None:
    """One technique with its parameters."""
    click.secho(f"{row['id']} ({row['family']})", bold=True)
    for part in row["description"].split("\n\n"):
        paragraph(part)
        click.echo()
    pairs(
        [
            ("changes", "the torch model" if row["level"] == "model" else "the exported ONNX file"),
            ("models", ", ".join(row["architectures"])),
            ("needs", ", ".join(row["needs"]) or "nothing"),
            ("paper", row["paper"] or "none"),
            ("runs here", {"yes": "yes", "not yet": NOT_YET}.get(_runs(row), f"no: {row['why_not']}")),
        ]
    )
    if row["params"]:
        heading("Parameters")
        params = [(p["name"], p["type"], p["default"], p["searched"]) for p in row["params"]]
        table(("name", "type", "default", "searched over"), params, fold="searched over")
        if meanings := [(p["name"], p["meaning"]) for p in row["params"] if p["meaning"]]:
            click.echo()
            pairs(meanings)

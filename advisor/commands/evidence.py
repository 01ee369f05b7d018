"""`advisor evidence`: parse, call one function, show."""

from __future__ import annotations

from pathlib import Path

import click

from advisor.show import console, options

FILE = click.Path(path_type=Path)
model = click.option("--model", metavar="NAME", help="Only rows of this model, by name or by hash of its weights.")
technique = click.option("--technique", metavar="ID", help="Only rows with this technique.")
shipped = click.option("--shipped", is_flag=True, help="The package's rows instead of your own.")


@click.group()
def evidence() -> None:
    """What was measured: by your own runs, and before.

    Runs and searches add their figures by themselves; estimates lean on them.
    """


@evidence.command(name="list")
@model
@technique
@shipped
@options.as_json
def list_rows(model: str | None, technique: str | None, shipped: bool, as_json: bool) -> None:
    """List measured chains: what they cost and gained.

    \b
    Example:
      advisor evidence list --model zoo:digits-cnn --shipped
    """
    from advisor import evidence as database
    from advisor.show.evidence import show_evidence

    rows = database.rows(model, technique, shipped)
    told = {"schema": database.EVIDENCE_SCHEMA, "rows": [row.model_dump(mode="json") for row in rows]}
    console.answer(as_json, told, lambda: show_evidence(rows, shipped))


@evidence.command()
@click.argument("file", type=FILE)
@model
@technique
@shipped
@options.as_json
def export(file: Path, model: str | None, technique: str | None, shipped: bool, as_json: bool) -> None:
    """Write rows to FILE as JSON.

    \b
    Example:
      advisor evidence export mine.json
    """
    from advisor import evidence as database
    from advisor.show.evidence import show_count

    count = database.export_json(file, model, technique, shipped)
    told = {"schema": database.EVIDENCE_SCHEMA, "exported": count, "file": str(file)}
    console.answer(as_json, told, lambda: show_count(count, f"written to {file}"))


@evidence.command(name="import")
@click.argument("file", type=FILE)
@options.as_json
def import_rows(file: Path, as_json: bool) -> None:
    """Add the rows of FILE to your own.

    A row with a known id replaces it. Where one is faulty, none is added.

    \b
    Example:
      advisor evidence import colleagues.json
    """
    from advisor import evidence as database
    from advisor.show.evidence import show_count

    count = database.import_json(file)
    told = {"schema": database.EVIDENCE_SCHEMA, "imported": count, "file": str(file)}
    console.answer(as_json, told, lambda: show_count(count, f"added from {file}"))


@evidence.command()
@click.option("--model", metavar="NAME", help="Every row of this model.")
@click.option("--id", "ids", metavar="ID", multiple=True, help="One row; may be given more than once.")
@click.option("--all", "everything", is_flag=True, help="Every row of your own.")
@options.as_json
def forget(model: str | None, ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Remove rows of your own, so that estimates no longer lean on them.

    \b
    Example:
      advisor evidence forget --model zoo:digits-cnn
    """
    from advisor import evidence as database
    from advisor.show.evidence import show_count

    count = database.forget(model, ids, everything)
    told = {"schema": database.EVIDENCE_SCHEMA, "forgotten": count}
    console.answer(as_json, told, lambda: show_count(count, "forgotten"))

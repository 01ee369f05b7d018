"""`advisor knowledge`: parse, call one function, show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from advisor.show import console, options

KINDS = click.Choice(["rule", "claim", "target", "model", "preset"])
of_technique = click.option("--technique", metavar="ID", help="Only those about this technique.")
of_arch = click.option("--arch", metavar="NAME", help="Only those for transformer, cnn, rnn or moe.")
of_source = click.option("--source", metavar="TEXT", help="Only those whose source contains this.")


@click.group()
def knowledge() -> None:
    """What the advice rests on."""


@knowledge.command()
@click.argument("technique", required=False)
@click.option("--markdown", is_flag=True, help="Print the table of the README.")
@options.as_json
def techniques(technique: str | None, markdown: bool, as_json: bool) -> None:
    """List every technique, or one with its parameters.

    And whether it can run here, and why not.

    \b
    Example:
      advisor knowledge techniques int8_static
    """
    from advisor import techniques as catalog
    from advisor.show.machine import show_technique, show_techniques

    if markdown:
        click.echo(catalog.markdown_table())
        return
    rows = catalog.technique_rows(technique)
    if as_json:
        console.print_json({"schema": catalog.TECHNIQUES_SCHEMA, "techniques": rows})
    elif technique:
        show_technique(rows[0])
    else:
        show_techniques(rows)


@knowledge.command()
@of_technique
@of_arch
@click.option("--fact", metavar="NAME", help="Only those that look at this fact.")
@click.option("--tree", metavar="TEXT", help="Only those of the trees whose title contains this.")
@of_source
@options.knowledge
@options.as_json
def rules(knowledge: str | None, as_json: bool, **filters: str | None) -> None:
    """List the rules: when they fire, and what follows.

    \b
    Example:
      advisor knowledge rules --technique channels --arch cnn
    """
    _answer("rules", knowledge, as_json, filters)


@knowledge.command()
@of_technique
@of_arch
@click.option("--status", metavar="NAME", help="Only measured, paper, reported, corrected or unsourced ones.")
@of_source
@options.knowledge
@options.as_json
def claims(knowledge: str | None, as_json: bool, **filters: str | None) -> None:
    """List the figures: what a technique cost one model.

    \b
    Example:
      advisor knowledge claims --technique distill --status paper
    """
    _answer("claims", knowledge, as_json, filters)


@knowledge.command()
@options.knowledge
@options.as_json
def targets(knowledge: str | None, as_json: bool) -> None:
    """List the targets with every figure and its origin.

    \b
    Example:
      advisor knowledge targets
    """
    _answer("targets", knowledge, as_json, {})


@knowledge.command()
@of_arch
@options.knowledge
@options.as_json
def models(knowledge: str | None, as_json: bool, **filters: str | None) -> None:
    """List the typical models, which stand in where none is given.

    \b
    Example:
      advisor knowledge models --arch transformer
    """
    _answer("models", knowledge, as_json, filters)


@knowledge.command()
@of_technique
@options.knowledge
@options.as_json
def presets(knowledge: str | None, as_json: bool, **filters: str | None) -> None:
    """List the presets: budgets and parameters to start from.

    \b
    Example:
      advisor knowledge presets --technique distill
    """
    _answer("presets", knowledge, as_json, filters)


@knowledge.command()
@options.knowledge
@options.as_json
def facts(knowledge: str | None, as_json: bool) -> None:
    """List what the conditions of rules may look at.

    \b
    Example:
      advisor knowledge facts
    """
    _answer("facts", knowledge, as_json, {})


@knowledge.command()
@click.option("--cases", metavar="DIR", help="Cases that should exercise every rule. [ours, or cases/ of --knowledge]")
@click.option("--notes", is_flag=True, help="Show notes too: worth knowing, no faults.")
@options.knowledge
@options.as_json
def check(cases: str | None, notes: bool, knowledge: str | None, as_json: bool) -> int:
    """Say what cannot work or cannot be trusted: exit 1.

    Rules that never fire, contradict each other or that no case exercises;
    techniques that no rule reaches; figures without protocol or origin.

    \b
    Example:
      advisor knowledge check
    """
    from advisor.check import check_knowledge
    from advisor.show.knowledge import show_check

    report = check_knowledge(knowledge, cases)
    console.answer(as_json, report.to_json(), lambda: show_check(report, notes))
    return report.exit_code


@knowledge.command()
@click.argument("kind", type=KINDS)
@click.argument("name", required=False)
@click.option("--out", "-o", metavar="DIR", help="Folder to write into. [your own, ~/.config/advisor]")
@options.as_json
def new(kind: str, name: str | None, out: str | None, as_json: bool) -> None:
    """Write a commented template of an entry of your own.

    It loads and passes the check as it is. Nothing is overwritten.

    \b
    Example:
      advisor knowledge new rule no-students --out mine
    """
    from advisor.show.knowledge import show_new
    from advisor.templates import write_template

    path = write_template(kind, name, out)
    written = {"schema": "advisor.new/1", "kind": kind, "id": name or f"my-{kind}", "file": str(path)}
    console.answer(as_json, written, lambda: show_new(path, out))


@knowledge.command()
@click.argument("kind", type=KINDS)
@options.as_json
def schema(kind: str, as_json: bool) -> None:
    """Print the JSON schema of a file, for editors.

    With --json, inside an answer like those of other commands.

    \b
    Example:
      advisor knowledge schema rule
    """
    from knowledge.json_schema import file_schema

    found = file_schema(f"{kind}s")
    console.print_json({"schema": "advisor.json-schema/1", "kind": kind, "json_schema": found} if as_json else found)


def _answer(kind: str, folder: str | None, as_json: bool, filters: dict[str, str | None]) -> None:
    """Rows of one kind, as JSON or as a table."""
    from advisor import listing
    from advisor.show import knowledge as shows
    from knowledge.load import load_knowledge

    rows_of: Callable[..., Sequence[Any]] = getattr(listing, kind)
    rows = rows_of(load_knowledge(folder), **filters)
    console.answer(as_json, {"schema": f"advisor.{kind}/1", kind: rows}, lambda: getattr(shows, f"show_{kind}")(rows))

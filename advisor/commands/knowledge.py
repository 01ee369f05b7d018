"""`advisor knowledge`: parse, call one function, show."""

from __future__ import annotations

import click

from advisor.show import console, options


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

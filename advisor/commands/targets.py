"""`advisor targets`: parse, call one function, show."""

from __future__ import annotations

import click

from advisor.show import console, options


@click.group()
def targets() -> None:
    """Where models run: hardware and deployment limits."""


@targets.command(name="list")
@options.knowledge
@options.as_json
def list_targets(knowledge: str | None, as_json: bool) -> None:
    """List the targets that are known.

    \b
    Example:
      advisor targets list
    """
    from advisor.show.machine import show_targets
    from knowledge.load import load_knowledge

    known = load_knowledge(knowledge).targets.values()
    if as_json:
        rows = [t.model_dump(mode="json", by_alias=True) for t in known]
        console.print_json({"schema": "advisor.targets/1", "targets": rows})
    else:
        show_targets(known)

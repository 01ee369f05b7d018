"""`advisor explain` and `advisor graph`: parse, call one function, show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advisor.show import console, options

if TYPE_CHECKING:
    from advisor.request import Request

PARAMS = click.option("--params", metavar="7B", help="Size of the typical model, where no MODEL is given.")


@options.request
def _requested(request: Request) -> Request:
    return request


def request_options(command: options.Command) -> options.Command:
    """Every option of a request, none of them needed; the command receives them as they were given."""
    for name, value, text in reversed(options.REQUEST):
        command = click.option(f"--{name}", metavar=value, help=text)(command)
    return command


@click.command()
@click.argument("name", metavar="ID")
@click.argument("model", required=False)
@request_options
@PARAMS
@options.as_json
def explain(name: str, model: str | None, as_json: bool, **given: Any) -> None:
    """Explain a technique, rule, claim, target or chain.

    ID may also be a chain of a recommendation, as `distill+int8_dynamic` or its
    rank: why this, why in this order, why not another. It needs the options that
    `recommend` got. With them, rules say whether they fire, and techniques what
    becomes of them. Where an ID means two things, write rule:ID.

    \b
    Example:
      advisor explain 1 --arch transformer --target mobile
    """
    from advisor.explain import explain as explained
    from advisor.show.explain import show_explanation

    asks = model or any(value is not None for option, value in given.items() if option != "knowledge")
    request = _requested(model=model, **given) if asks else None
    found = explained(name, request, given["knowledge"]).model_dump(mode="json", by_alias=True)
    console.answer(as_json, found, lambda: show_explanation(found))


@click.command()
@click.argument("model", required=False)
@options.request
@PARAMS
@click.option("--top", metavar="N", help="How many chains to mark. [5]")
@click.option("--format", "form", metavar="NAME", help="mermaid, dot, svg or html. [that of FILE, or mermaid]")
@click.option(
    "--out", "-o", metavar="FILE", type=click.Path(path_type=Path), help="File to write: .mmd .dot .svg .html"
)
@options.as_json
def graph(request: Request, form: str | None, out: Path | None, as_json: bool) -> None:
    """Draw the graph of chains for MODEL and a target.

    Every technique at its phase, the first-ranked chain marked, what is refused
    in gray with the reason.

    \b
    Example:
      advisor graph --arch transformer --target mobile --out graph.html
    """
    from advisor import draw
    from advisor.folders import write_file

    chosen = draw.format_for(form, out)
    drawing = draw.draw_request(request)
    text = draw.render(drawing, chosen)
    if out is not None:
        write_file(out, text.encode())
    if as_json:
        console.print_json(drawing.model_dump(mode="json", by_alias=True))
    elif out is not None:
        click.echo(f"graph: {out}")
    else:
        click.echo(text, nl=False)

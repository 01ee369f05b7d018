"""The graph of chains of a request as Mermaid, DOT, SVG or a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from knowledge.names import nearest
from knowledge.values import InputError

if TYPE_CHECKING:
    from advisor.draw.drawing import Drawing
    from advisor.request import Request

FORMATS = ("mermaid", "dot", "svg", "html")
ENDINGS = {
    ".mmd": "mermaid",
    ".mermaid": "mermaid",
    ".dot": "dot",
    ".gv": "dot",
    ".svg": "svg",
    ".html": "html",
    ".htm": "html",
}


def format_for(named: str | None, out: Path | None) -> str:
    """The format that was named, or the one of the file's ending, or Mermaid. Raises InputError."""
    if named is not None:
        if named in FORMATS:
            return named
        raise InputError("format", named, "unknown format", nearest(named, FORMATS))
    if out is None:
        return "mermaid"
    if out.suffix.lower() not in ENDINGS:
        raise InputError("out", out, "the ending names no format", f"use {', '.join(ENDINGS)}, or give --format")
    return ENDINGS[out.suffix.lower()]


def draw_request(request: Request) -> Drawing:
    """The drawing of a request's graph, its first-ranked chain marked."""
    from advisor.advise import deliberate
    from advisor.draw.drawing import drawing_of

    return drawing_of(deliberate(request))


def render(drawing: Drawing, form: str) -> str:
    """The drawing in one of FORMATS; everything from outside is escaped."""
    if form == "mermaid":
        from advisor.draw.mermaid import mermaid

        return mermaid(drawing)
    if form == "dot":
        from advisor.draw.dot import dot

        return dot(drawing)
    if form == "svg":
        from advisor.draw.svg import svg

        return svg(drawing)
    from advisor.draw.page import page

    return page(drawing)

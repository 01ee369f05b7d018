"""The graph of chains of a request as Mermaid, DOT, SVG or a page."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from knowledge.files import write_text
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
        near = difflib.get_close_matches(named, FORMATS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(FORMATS)}"
        raise InputError("format", named, "unknown format", remedy)
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


def write(path: Path, text: str) -> None:
    """Write a drawing beside its place, then move it there. Raises InputError where nothing can be written."""
    if path.is_dir():
        raise InputError("out", path, "is a folder", "name a file in it, such as graph.html")
    try:
        write_text(path, text)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise InputError("out", path, f"cannot be written: {error.strerror}".lower()) from None

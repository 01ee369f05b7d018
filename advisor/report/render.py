"""Templates: everything a template prints is escaped, for HTML or for Markdown; nothing is trusted by default."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from advisor.report.view import Report

FOLDER = Path(__file__).parent
ARXIV = re.compile(r"arXiv:\s?(\d{4}\.\d{4,5}(?:v\d+)?)", re.IGNORECASE)
DOI = re.compile(r"doi:(10\.\d{4,9}/[^\s;,<>\"')\]]+[^\s;,.<>\"')\]])", re.IGNORECASE)
ADDRESS = re.compile(r"https?://[^\s<>\"')\]]+[^\s<>\"')\].,;:]")
# what is found -> the address that its last group completes
ORIGINS = {ARXIV: "https://arxiv.org/abs/", DOI: "https://doi.org/", ADDRESS: ""}
MARKDOWN_SPECIAL = re.compile(r"([\\`*\[\]|])")


def render_html(report: Report) -> str:
    """One self-contained page."""
    style = Markup((FOLDER / "style.css").read_text())  # ours, not the user's
    return _environment("html").get_template("report.html.j2").render(r=report, style=style)


def render_markdown(report: Report) -> str:
    return tidy(_environment("md").get_template("report.md.j2").render(r=report))


def render_card(values: dict[str, Any]) -> str:
    return tidy(_environment("md").get_template("card.md.j2").render(**values))


def tidy(text: str) -> str:
    """At most one blank line in a row, one newline at the end."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def escape_markdown(value: Any) -> Any:
    """Text that Markdown and the HTML inside it show as it is, on one line."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    text = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKDOWN_SPECIAL.sub(r"\\\1", re.sub(r"\s+", " ", text))


def linked_html(source: str) -> Markup:
    """A source with its arXiv ids and http addresses as links; nothing else becomes one."""
    return Markup(_linked(source, lambda t: str(escape(t)), lambda t, u: f'<a href="{escape(u)}">{escape(t)}</a>'))


def linked_markdown(source: str) -> Markup:
    return Markup(_linked(source, lambda t: str(escape_markdown(t)), lambda t, u: f"[{t}]({u})"))


def _linked(source: str, plain: Callable[[str], str], link: Callable[[str, str], str]) -> str:
    found = sorted([m for pattern in ORIGINS for m in pattern.finditer(source)], key=lambda m: m.start())
    parts, at = [], 0
    for match in found:
        if match.start() < at:
            continue
        parts.append(plain(source[at : match.start()]))
        parts.append(link(match[0], ORIGINS[match.re] + match[match.re.groups]))
        at = match.end()
    return "".join([*parts, plain(source[at:])])


@lru_cache(maxsize=2)
def _environment(kind: str) -> Environment:
    html = kind == "html"
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=html,
        finalize=None if html else escape_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["linked"] = linked_html if html else linked_markdown
    return made

"""Printing: results on stdout, progress on stderr, nothing of the user's read as markup."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import click

PIPE_WIDTH = 100  # columns where the output is no terminal
MAX_WIDTH = 120


def width() -> int:
    """Columns to print in."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return PIPE_WIDTH
    return min(max(shutil.get_terminal_size((PIPE_WIDTH, 24)).columns, 60), MAX_WIDTH)


def print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def answer(as_json: bool, value: dict[str, Any], show: Callable[[], None]) -> None:
    """The result of a command: JSON, or tables."""
    if as_json:
        print_json(value)
    else:
        show()


def progress(message: str) -> None:
    """One line on stderr."""
    click.echo(message, err=True)


def heading(text: str) -> None:
    click.echo()
    click.secho(text, bold=True)


def paragraph(text: str, indent: str = "", first: str | None = None, hang: str | None = None) -> None:
    """Wrapped text; `first` opens the first line, later lines start with `hang`."""
    opening = indent if first is None else first
    later = " " * len(opening) if hang is None else hang
    wrapper = textwrap.TextWrapper(width(), initial_indent=opening, subsequent_indent=later)
    wrapper.break_long_words = wrapper.break_on_hyphens = False  # a broken address cannot be opened
    click.echo(wrapper.fill(clean(" ".join(text.split()))) or opening.rstrip())


def pairs(rows: Iterable[tuple[str, str]], indent: str = "") -> None:
    """Names in one column, texts wrapped in the next."""
    rows = list(rows)
    widest = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        paragraph(text, first=f"{indent}{name.ljust(widest)}  ")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = (), fold: str = "") -> None:
    """Rows under bold headings; columns in `right` are aligned right, the column `fold` may wrap."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=width(), markup=False, emoji=False, highlight=False, no_color="NO_COLOR" in os.environ)
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        side: Literal["left", "right"] = "right" if name in right else "left"
        drawn.add_column(name, justify=side, no_wrap=name != fold, overflow="fold", min_width=min(len(name), 9))
    for row in rows:
        drawn.add_row(*(Text(clean(cell)) for cell in row))
    with console.capture() as printed:
        console.print(drawn)
    click.echo("\n".join(line.rstrip() for line in printed.get().rstrip("\n").split("\n")))


def clean(text: str) -> str:
    """The text without control characters: a name from a file must not steer the terminal."""
    return "".join(c if c.isprintable() or c in " \n" else "�" for c in text)

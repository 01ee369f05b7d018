"""How far long work is, told in lines to whoever asked for it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]


def silent(message: str) -> None:
    """Lines that nobody reads."""

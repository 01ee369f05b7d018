"""Interruptions that are never lost: libraries swallow an exception that reaches them while they tidy up."""

from __future__ import annotations

import signal
from types import FrameType

_seen = False


def watch() -> None:
    """Note Ctrl-C and a polite kill, and raise KeyboardInterrupt for both. For the main thread."""
    global _seen
    _seen = False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def check() -> None:
    """Raise KeyboardInterrupt where one came and did not get through. Called between pieces of long work."""
    if _seen:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _seen
    _seen = True
    raise KeyboardInterrupt

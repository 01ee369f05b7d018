"""A part of a library, replaced while an export lasts, where it cannot be chosen otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ONE_AT_A_TIME = threading.RLock()  # what is replaced is replaced for every thread


@contextmanager
def replaced(owner: type, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """While open, `owner.name` is what `make` makes of it; unchanged where this version of the library has none."""
    with ONE_AT_A_TIME:
        original = owner.__dict__.get(name)
        if original is None:
            yield
            return
        setattr(owner, name, make(original))
        try:
            yield
        finally:
            setattr(owner, name, original)

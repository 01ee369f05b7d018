"""Remedies for names that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], other: str = "") -> str:
    """What was probably meant, or everything there is; `other`: what may be given instead.

    >>> nearest("mobil", ["mobile", "edge"]), nearest("x", ["mobile", "edge"], "a YAML file")
    ('did you mean mobile?', 'known: mobile, edge (or a YAML file)')
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    text = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
    return f"{text} (or {other})" if other else text

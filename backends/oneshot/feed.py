"""How much calibration data pass a block at once."""

from __future__ import annotations

import os

SHARE = 0.25  # of the machine's memory that activations may take
COPIES = 4  # of the widest activation that live at the same time, roughly


def windows_at_once(length: int, widest: int, budget_bytes: float | None = None) -> int:
    """Samples of so many tokens that fit into memory where layers are `widest` wide; at least one."""
    budget = SHARE * memory_bytes() if budget_bytes is None else budget_bytes
    return max(1, int(budget // (4 * COPIES * widest * length)))


def memory_bytes() -> int:
    """Of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

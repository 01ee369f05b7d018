"""Memory: the peak of a stretch of work in this process, and what the machine has."""

from __future__ import annotations

import os
import resource
from pathlib import Path

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


class PeakMemory:
    """Resident peak in bytes since this was made, or since the process began where the system cannot reset it."""

    def __init__(self) -> None:
        if RESET.exists():
            try:
                RESET.write_text("5")  # resets VmHWM, see proc(5)
            except PermissionError:
                return

    @property
    def bytes(self) -> int:
        if STATUS.exists():
            for line in STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def total_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

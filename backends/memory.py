"""Memory: the peak of a stretch of work in this process, and what the machine has."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
M_MMAP_THRESHOLD, LARGE_BYTES = -3, 4 * 2**20  # see mallopt(3)


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
    """Bytes of memory of this machine, or of what a process may take of it (`ulimit -d`, `ulimit -v`)."""
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])


def memory_of(devices: Iterable[torch.device]) -> int:
    """Bytes of the machine's memory, or of the smallest GPU with memory of its own where that is less."""
    from torch import get_device_module

    gpus = {one: get_device_module(one) for one in devices if one.type != "cpu"}
    told = [gpu.get_device_properties(one) for one, gpu in gpus.items() if hasattr(gpu, "get_device_properties")]
    return min([total_memory(), *(int(one.total_memory) for one in told)])


def return_large_arrays() -> None:
    """Let arrays of 4 MB and more go back to the system as soon as they are freed, from now on in this process.

    glibc comes to keep pieces of up to 32 MB in a heap, which then has holes: the peak of equal pieces of work creeps
    up. Other C libraries are left as they are.
    """
    _glibc("mallopt", M_MMAP_THRESHOLD, LARGE_BYTES)


def return_freed() -> None:
    """Let what was freed of the heap go back to the system now, where glibc keeps it."""
    _glibc("malloc_trim", 0)


def _glibc(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
    if function is not None:
        function(*arguments)

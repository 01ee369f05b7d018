"""The machine that measures."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from functools import lru_cache
from pathlib import Path

from backends.onnx.session import CPU
from backends.onnx.verification import Environment

CPU_INFO = Path("/proc/cpuinfo")
LIBRARIES = ("onnxruntime", "onnx", "torch", "transformers", "numpy")
DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "asimddp", "i8mm"}  # x86 and Arm


@lru_cache(maxsize=1)
def cpu_facts() -> tuple[str, frozenset[str]]:
    """The CPU's name and its instruction-set flags."""
    text = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    return name[1] if name else platform.processor() or platform.machine(), frozenset(flags[1].split() if flags else ())


def environment(threads: int, provider: str = CPU) -> Environment:
    """Versions, CPU and threads of a measurement."""
    name, flags = cpu_facts()
    versions = {"python": platform.python_version()} | {lib: importlib.metadata.version(lib) for lib in LIBRARIES}
    return Environment(versions=versions, cpu=name, vnni=bool(flags & DOT_PRODUCTS), threads=threads, provider=provider)

"""What the processor of this machine can do, by its own word."""

from __future__ import annotations

import platform
import re
from functools import lru_cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
INT8_FLAGS = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")  # x86 and Arm
X86 = ("x86_64", "AMD64", "i686", "x86")


@lru_cache(maxsize=1)
def cpu_facts() -> tuple[str, frozenset[str]]:
    """The CPU's name, and its instruction-set flags as Linux names them; no flags where the system does not say."""
    text = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    return name[1] if name else platform.processor() or platform.machine(), frozenset(flags[1].split() if flags else ())


def cpu_flags() -> frozenset[str]:
    return cpu_facts()[1]


def has_int8_dot() -> bool:
    """Whether four 8-bit products are summed in 32 bits by one instruction."""
    return any(flag in cpu_flags() for flag in INT8_FLAGS)


def int8_sums_overflow() -> bool:
    """Whether the fast kernels add pairs of 8-bit products, up to 2 · 255 · 127, in 16 bits: so on x86 without VNNI.

    Source: ONNX Runtime, "Quantize ONNX models", when and why to try U8U8.
    """
    return platform.machine() in X86 and not has_int8_dot()

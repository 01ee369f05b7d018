"""The machine that measures."""

from __future__ import annotations

import importlib.metadata
import platform

from backends.onnx.session import CPU
from backends.onnx.verification import Environment
from backends.processor import cpu_facts, has_int8_dot, int8_sums_overflow

LIBRARIES = ("onnxruntime", "onnx", "torch", "transformers", "numpy")


def environment(threads: int, provider: str = CPU) -> Environment:
    """Versions, CPU and threads of a measurement."""
    versions = {"python": platform.python_version()} | {lib: importlib.metadata.version(lib) for lib in LIBRARIES}
    return Environment(
        versions=versions,
        cpu=cpu_facts()[0],
        vnni=has_int8_dot(),
        exact_integers=int8_sums_overflow(),
        threads=threads,
        provider=provider,
    )

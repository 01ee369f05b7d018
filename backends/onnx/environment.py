"""The machine that measures."""

from __future__ import annotations

import importlib.metadata
import platform

from onnxruntime import InferenceSession

from backends.onnx.integer_sums import has_option
from backends.onnx.options import CPU
from backends.onnx.verification import Environment, IntegerSums
from backends.processor import cpu_facts, has_int8_dot, int8_sums_overflow

LIBRARIES = ("onnxruntime", "onnx", "torch", "transformers", "numpy")


def environment(threads: int, session: InferenceSession | None = None) -> Environment:
    """Versions, CPU and threads of a measurement, which `session` ran."""
    versions = {"python": platform.python_version()} | {lib: importlib.metadata.version(lib) for lib in LIBRARIES}
    return Environment(
        versions=versions,
        cpu=cpu_facts()[0],
        vnni=has_int8_dot(),
        integer_sums=_integer_sums(session),
        threads=threads,
        provider=session.get_providers()[0] if session else CPU,
    )


def _integer_sums(session: InferenceSession | None) -> IntegerSums:
    if not int8_sums_overflow():
        return "exact"
    return "exact by option" if session and has_option(session) else "may overflow"

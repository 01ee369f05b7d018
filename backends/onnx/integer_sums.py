"""Sums of 8-bit products that are exact where the processor's fast kernels would let them overflow.

The runtime has an option for it, which moves signed weights to unsigned ones as it loads a file. Two kinds of files do
not survive that: layers that share a weight are refused, and weights that are only dequantized, per channel and without
a zero point, fail when they run. So each file is tried.
"""

from __future__ import annotations

import mmap
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime as ort

from backends.onnx.cache_names import PAST
from backends.onnx.options import CPU, TYPES, session_options
from backends.processor import int8_sums_overflow

OPTION = "session.x64quantprecision"
# in the names of operators with integer activations
INTEGERS = (b"QuantizeLinear", b"DynamicQuantize", b"MatMulInteger", b"ConvInteger", b"QLinear")


def by_option(path: Path) -> bool:
    """Whether a file needs the option on this processor and works with it."""
    if not int8_sums_overflow() or not path.is_file():
        return False
    found = path.stat()
    return _works(path.resolve(), found.st_mtime_ns, found.st_size)


def has_option(session: ort.InferenceSession) -> bool:
    """Whether a session was opened with the option."""
    try:
        return bool(session.get_session_options().get_session_config_entry(OPTION) == "1")
    except RuntimeError:  # not set
        return False


@lru_cache(maxsize=256)
def _works(path: Path, changed: int, size: int) -> bool:
    if size == 0 or not _has_integer_products(path) or (session := _loaded(path, True)) is None:
        return False
    if _computes(session):
        return True
    plain = _loaded(path, False)
    return plain is not None and not _computes(plain)  # zeros are no input for it either way


def _has_integer_products(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(name) >= 0 for name in INTEGERS)


def _loaded(path: Path, with_option: bool) -> ort.InferenceSession | None:
    options = session_options(1)
    if with_option:
        options.add_session_config_entry(OPTION, "1")
    try:
        return ort.InferenceSession(str(path), options, providers=[CPU])
    except Exception:  # the runtime's exception classes share no public base
        return None


def _computes(session: ort.InferenceSession) -> bool:
    """Whether a session computes on zeros, one of everything."""
    try:
        session.run(None, {spec.name: _zeros(spec) for spec in session.get_inputs()})
    except Exception:  # as above, or an input of another type
        return False
    return True


def _zeros(spec: ort.NodeArg) -> np.ndarray:
    """The smallest input: one where an axis may have any length, no position of a key-value cache."""
    first, *others = [size if isinstance(size, int) else None for size in spec.shape] or [1]
    rest = [size if size is not None else int(not spec.name.startswith(PAST)) for size in others]
    return np.zeros([first or 1, *rest] if spec.shape else [], TYPES[spec.type])

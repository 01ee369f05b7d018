"""Inputs in the workload's shape, cut from real samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from backends.onnx.cache_names import PAST
from backends.onnx.session import Batch, open_session
from knowledge.values import InputError, Workload

if TYPE_CHECKING:
    from backends.data import Split


def workload_feed(path: Path, split: Split, workload: Workload) -> Batch:
    """One batch for a file: samples repeated or cut to the workload's batch size and sequence length."""
    return session_feed(open_session(path, 1), split, workload)


def session_feed(session: ort.InferenceSession, split: Split, workload: Workload) -> Batch:
    """The same for an open session; raises InputError where the split lacks an input."""
    feed = {}
    for spec in session.get_inputs():
        if spec.name.startswith(PAST):
            continue  # a cache starts empty
        if spec.name not in split.inputs:
            raise InputError("data", spec.name, "the model needs this input", f"give {', '.join(split.inputs)}")
        array = _resized(np.asarray(split.inputs[spec.name]), 0, workload.batch)
        if workload.seq_len and array.ndim > 1 and isinstance(spec.shape[1], str):
            array = _resized(array, 1, workload.seq_len)
        feed[spec.name] = np.ascontiguousarray(array)
    return feed


def _resized(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """`size` entries along an axis: the first ones, starting over where there are too few."""
    return np.asarray(np.take(array, np.arange(size) % array.shape[axis], axis=axis))

"""How sessions are opened: where they compute, quietly, and the runtime's names for types of inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FATAL_ONLY = 4
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


def session_options(threads: int) -> ort.SessionOptions:
    """Options for a quiet session with `threads` threads that do not spin."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def providers(cuda: bool) -> Sequence[str]:
    """Execution providers in order of preference."""
    return [CUDA, CPU] if cuda and CUDA in ort.get_available_providers() else [CPU]

"""How sessions are opened: where they compute, and quietly."""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime as ort

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FATAL_ONLY = 4


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

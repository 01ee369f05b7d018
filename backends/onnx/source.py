"""An ONNX file as the model to compress: only the techniques that change files apply to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from backends.models import InputSpec, check_arch
from backends.onnx import graph as graphs
from backends.onnx.cache_names import PAST
from backends.onnx.session import open_session
from backends.profile_onnx import profile_onnx, told
from knowledge.layers import ModelInfo
from knowledge.tasks import check_task
from knowledge.values import InputError

TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}


@dataclass
class OnnxModel:
    """What loading data and running stages need to know of a file."""

    source: str
    info: ModelInfo
    inputs: tuple[InputSpec, ...]
    tokenizer: Any = None


def described(path: Path, task: str | None, arch: str | None = None) -> OnnxModel:
    """Read a file's inputs and layers; `task` and `arch` decide where the file does not tell.

    Raises InputError for a corrupt file, NaN weights, unknown input types, a missing task or another family's name.
    """
    if arch is not None:
        check_arch(arch)
    if task is not None:
        check_task(task)
    session = open_session(path, 1, given=True)
    inputs = []
    for item in session.get_inputs():
        if item.name.startswith(PAST):
            continue  # no data: a cache starts empty
        if item.type not in TYPES:
            raise InputError("model", path, f"input {item.name} has type {item.type}", f"known: {', '.join(TYPES)}")
        shape = tuple(
            size if isinstance(size, int) else str(size or f"axis{axis}") for axis, size in enumerate(item.shape)
        )
        inputs.append(InputSpec(item.name, TYPES[item.type], shape))
    check_numbers(path)
    layers = told(profile_onnx(path), path, task, arch)
    return OnnxModel(str(path), layers.info, tuple(inputs))


def check_numbers(path: Path) -> None:
    """Raise InputError naming the first initializer that holds NaN. Infinity is left: masks are made of it."""
    for name, value in graphs.load(path).graph.initializers.items():
        array = graphs.constant(value)
        if array is not None and array.dtype.kind not in "biuOSU" and bool(np.isnan(array).any()):
            problem = f"{name} holds {int(np.isnan(array).sum())} NaN values"
            raise InputError("model", path, problem, "give sound weights")


def whole(path: Path) -> bytes:
    """The file's bytes; weights that it keeps in other files are taken in. Raises RunFailed above 2 GB."""
    model = graphs.load(path)
    if not any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values()):
        return path.read_bytes()
    return graphs.serialized(ir.external_data.load_to_model(model), path)

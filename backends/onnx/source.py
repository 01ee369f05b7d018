"""An ONNX file as the model to compress: only the techniques that change files apply to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.models import InputSpec
from backends.onnx.session import open_session
from backends.profile_onnx import profile_onnx
from knowledge.layers import ModelInfo
from knowledge.values import InputError

TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}


@dataclass
class OnnxModel:
    """What loading data and running stages need to know of a file."""

    source: str
    info: ModelInfo
    inputs: tuple[InputSpec, ...]
    tokenizer: Any = None


def described(path: Path, task: str | None) -> OnnxModel:
    """Read a file's inputs and layers; raises InputError for a corrupt file, unknown input types or a missing task."""
    if not task:
        raise InputError(
            "task", "", f"{path} does not say what it is for", "add --task image-classification (or another)"
        )
    session = open_session(path, 1)
    inputs = []
    for item in session.get_inputs():
        if item.type not in TYPES:
            raise InputError("model", path, f"input {item.name} has type {item.type}", f"known: {', '.join(TYPES)}")
        shape = tuple(
            size if isinstance(size, int) else str(size or f"axis{axis}") for axis, size in enumerate(item.shape)
        )
        inputs.append(InputSpec(item.name, TYPES[item.type], shape))
    layers = profile_onnx(path).with_info(task=task)
    return OnnxModel(str(path), layers.info, tuple(inputs))

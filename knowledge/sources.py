"""What the name of a model stands for: the user's code, so that nothing imports it unasked, or a file in a folder."""

from __future__ import annotations

import re
from pathlib import Path

from knowledge.values import InputError

FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def check_framework(folder: Path) -> None:
    """Raise InputError for a folder that holds an ONNX file instead of weights: an artifact, or a run around one."""
    if any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
        return
    file = next((f for name in ("model.onnx", "artifact/model.onnx") if (f := folder / name).is_file()), None)
    if file is not None:
        raise InputError("model", folder, "holds an ONNX file and no weights beside it", f"give the file: {file}")


def is_factory(model: str) -> bool:
    """Whether a model's name is `package.module:factory`.

    >>> [is_factory(name) for name in ("mymodels.cnn:make", "zoo:minilm", "models/bert", "model.onnx")]
    [True, False, False, False]
    """
    return not model.startswith("zoo:") and FACTORY.fullmatch(model) is not None


def is_function(metric: str) -> bool:
    """Whether a metric's name is the user's `module:function`: with a colon, anything is imported.

    >>> [is_function(name) for name in ("f1", "mine:score", "zoo:x", "evil-mod:f", "evil:a.b")]
    [False, True, True, True, True]
    """
    return ":" in metric

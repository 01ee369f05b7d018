"""Kinds of layers and models; those of transformers are told without importing it, which takes seconds."""

from __future__ import annotations

import sys
from typing import TypeGuard

from torch import nn


def is_dense(module: nn.Module) -> TypeGuard[nn.Linear]:  # Conv1D too has a weight and a bias
    """A layer that multiplies its one input by one matrix."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's dense layer, which holds its weight as [in, out]."""
    return isinstance(module, _classes("transformers.pytorch_utils", "Conv1D"))


def is_pretrained(module: nn.Module) -> bool:
    """A model of transformers, or a part of one that could stand alone."""
    return isinstance(module, _classes("transformers.modeling_utils", "PreTrainedModel"))


def _classes(library: str, name: str) -> tuple[type, ...]:
    """The class, for `isinstance`; none where nothing has imported its library (to the end): then nothing is one."""
    found = getattr(sys.modules.get(library), name, None)
    return () if found is None else (found,)

"""From a path in a layer table to the weight it names, and changing that weight's shape.

model.layers.0.mlp.up_proj              a module: its `weight`
model.layers.0.mlp.experts.down_proj    a bare parameter: [copies, outputs, inputs], or transposed
lstm.weight_hh_l0                       a bare parameter: one of a recurrent layer's matrices
cls_token                               a bare parameter: [1, 1, width]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backends.surgery import Axes, assign, resize, select, weight_axes
from knowledge.values import Shape


@dataclass(frozen=True)
class Located:
    """A weight, the module that holds it under which name, and where its outputs and inputs lie."""

    owner: nn.Module
    name: str
    axes: Axes

    @property
    def weight(self) -> Tensor:
        found = getattr(self.owner, self.name)
        assert isinstance(found, Tensor)
        return found

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs as the layer table counts them: inputs before grouping, 1 where there is no such side."""
        shape, axes = self.weight.shape, self.axes
        outputs = shape[axes.outputs] if axes.outputs is not None else 1
        inputs = shape[axes.inputs] * int(getattr(self.owner, "groups", 1)) if axes.inputs is not None else 1
        return outputs, inputs


def located(root: nn.Module, path: str) -> Located:
    """The weight behind a path; raises KeyError where there is none."""
    found = _at(root, path)
    if isinstance(found, nn.Module):
        if not isinstance(getattr(found, "weight", None), Tensor):
            raise KeyError(path)
        return Located(found, "weight", weight_axes(found))
    parent, _, name = path.rpartition(".")
    owner = root.get_submodule(parent)
    return Located(owner, name, _bare_axes(owner, found))


def _bare_axes(owner: nn.Module, weight: Tensor) -> Axes:
    if weight.dim() == 3 and weight.shape[0] > 1:  # a stack of experts
        return Axes(2, 1) if getattr(owner, "is_transposed", False) else Axes(1, 2)
    real = [axis for axis, size in enumerate(weight.shape) if size > 1] or [0]
    return Axes(real[0], real[1] if len(real) > 1 else None)


def cut(root: nn.Module, path: str, outputs: Tensor | None, inputs: Tensor | None) -> None:
    """Keep the outputs and inputs with the given indices of the layer at `path`, its bias included; None keeps all."""
    found = located(root, path)
    if found.name == "weight":
        select(found.owner, outputs, inputs)
        return
    weight = found.weight
    for axis, kept in ((found.axes.outputs, outputs), (found.axes.inputs, inputs)):
        if axis is not None and kept is not None:
            weight = weight.index_select(axis, kept.to(weight.device))
    assign(found.owner, found.name, weight)
    bias_name = f"{found.name.removesuffix('weight')}bias" if found.name.endswith("weight") else f"{found.name}_bias"
    bias = getattr(found.owner, bias_name, None)
    if outputs is not None and isinstance(bias, Tensor):
        assign(found.owner, bias_name, bias.index_select(-1, outputs.to(bias.device)))


def resize_at(root: nn.Module, path: str, shape: Shape) -> None:
    """Bring the layer at `path` to a shape by keeping what comes first; raises ValueError where it would grow."""
    module = _at(root, path)
    if isinstance(module, nn.Module):
        resize(module, shape)
        return
    now = located(root, path).sizes
    if shape.outputs > now[0] or shape.inputs > now[1]:
        raise ValueError(f"{path} of {now[0]} outputs and {now[1]} inputs cannot grow to {shape}")
    cut(root, path, torch.arange(shape.outputs), torch.arange(shape.inputs))


def weight_tensors(root: nn.Module, path: str) -> dict[str, nn.Parameter]:
    """Weights (no biases) of the layer at `path`, a module or a bare parameter, by their names in `root`.

    Both factors of a factored layer, every gate matrix of an LSTM. Raises KeyError where nothing is found.
    """
    module = _at(root, path)
    if isinstance(module, nn.Parameter):
        return {path: module}
    names = [n for n, p in module.named_parameters() if p.dim() >= 2]
    return {f"{path}.{n}" if path else n: module.get_parameter(n) for n in names}


def _at(root: nn.Module, path: str) -> nn.Module | nn.Parameter:
    parent, _, name = path.rpartition(".")
    try:
        found = getattr(root.get_submodule(parent), name) if path else root
    except AttributeError:
        raise KeyError(path) from None
    if not isinstance(found, nn.Module | nn.Parameter):
        raise KeyError(path)
    return found

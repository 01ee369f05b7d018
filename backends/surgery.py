"""Changing the shape of single modules in place: keep chosen outputs and inputs, or replace a matrix by two thin ones.

    module        weight                    outputs  inputs
    Linear        [out, in]                 axis 0   axis 1
    Conv          [out, in/groups, *kernel] axis 0   axis 1
    Conv1D        [in, out]                 axis 1   axis 0      (GPT-2's dense layer)
    norms         [width]                   axis 0
    Embedding     [rows, width]             axis 0   axis 1
    LSTM, GRU     [gates·hidden, in]        per gate

Nothing here needs data: executors call it with the indices they chose, `structure.rebuild` with sizes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from backends.layer_kinds import is_conv1d, is_dense
from knowledge.values import Shape


class FactoredLinear(nn.Module):
    """A dense layer as the product of two thin ones: y = up(down(x)), with `rank` numbers in between.

    down: [rank, inputs], up: [outputs, rank]; the bias stays with `up`.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = inputs, outputs, rank
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(x))
        return y

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}"


@dataclass(frozen=True)
class Axes:
    """Where a parameter's outputs and inputs lie; None: it has none."""

    outputs: int | None = None
    inputs: int | None = None


# attributes by which modules report their sizes
OUTPUT_SIZES = ("out_features", "out_channels", "nf", "num_features", "num_embeddings")
INPUT_SIZES = ("in_features", "in_channels", "nx", "embedding_dim")


def replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` where `path` points."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def weight_axes(module: nn.Module) -> Axes:
    """Where the outputs and inputs of a module's weight lie; one-dimensional weights (norms) have outputs only."""
    if is_conv1d(module):
        return Axes(1, 0)
    if isinstance(module, nn.Linear | nn.Embedding | _ConvNd):
        return Axes(0, 1)
    weight = getattr(module, "weight", None)
    return Axes(0, 1) if weight is not None and weight.dim() == 2 else Axes(0, None)


def select(module: nn.Module, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    """Keep the outputs and inputs with the given indices, in the given order; None keeps all.

    For grouped convolutions `inputs` indexes channels within a group; a depthwise one gets as many groups as outputs.
    """
    axes = weight_axes(module)
    depthwise = isinstance(module, _ConvNd) and module.groups == module.in_channels > 1
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        here = axes if name == "weight" else Axes(0, None)
        if tensor.dim() == 0:
            continue  # BatchNorm's step counter
        kept = tensor
        if outputs is not None and here.outputs is not None:
            kept = kept.index_select(here.outputs, outputs.to(kept.device))
        if inputs is not None and here.inputs is not None and not depthwise:
            kept = kept.index_select(here.inputs, inputs.to(kept.device))
        if kept is not tensor:
            assign(module, name, kept)
    if outputs is not None:
        _resized(module, OUTPUT_SIZES, len(outputs))
        if hasattr(module, "normalized_shape"):
            module.normalized_shape = (len(outputs),)  # type: ignore[assignment]
        if isinstance(module, _ConvNd) and depthwise:
            module.groups = module.in_channels = len(outputs)
    if inputs is not None and not depthwise:
        _resized(module, INPUT_SIZES, len(inputs) * getattr(module, "groups", 1))


def resize(module: nn.Module, shape: Shape) -> None:
    """Keep the first outputs and inputs so that the module has `shape`; raises ValueError where it would grow."""
    if isinstance(module, nn.RNNBase):  # outputs: its hidden units
        select_hidden(module, torch.arange(shape.outputs), torch.arange(shape.inputs))
        return
    axes = weight_axes(module)
    weight: Any = module.weight if getattr(module, "weight", None) is not None else module.running_mean
    device = weight.device
    outputs = torch.arange(shape.outputs, device=device)
    inputs = torch.arange(shape.inputs // shape.groups, device=device) if axes.inputs is not None else None
    now = (weight.shape[axes.outputs or 0], weight.shape[axes.inputs] if axes.inputs is not None else 0)
    if len(outputs) > now[0] or (inputs is not None and len(inputs) > now[1]):
        raise ValueError(f"{type(module).__name__} of {now[0]} outputs and {now[1]} inputs cannot grow to {shape}")
    depthwise = isinstance(module, _ConvNd) and module.groups == module.in_channels > 1
    if isinstance(module, _ConvNd) and not depthwise and module.groups != shape.groups:
        raise ValueError(f"a convolution of {module.groups} groups cannot have {shape.groups}")
    select(module, outputs, inputs)


def select_hidden(module: nn.RNNBase, hidden: Tensor, inputs: Tensor | None = None) -> None:
    """Keep the hidden units with the given indices in all layers and directions, and the given inputs.

    For LSTM and GRU. weight_ih: [gates·hidden, in], weight_hh: [gates·hidden, hidden], gates one after another.
    Raises ValueError on an LSTM with a projection.
    """
    if module.proj_size:
        raise ValueError("an LSTM with a projection cannot change its hidden size")
    before, directions = module.hidden_size, 2 if module.bidirectional else 1
    first = module.get_parameter("weight_ih_l0")  # [gates·hidden, in]
    hidden, count = hidden.to(first.device), first.shape[0] // before
    gates = torch.cat([hidden + gate * before for gate in range(count)])
    stacked = torch.cat([hidden + direction * before for direction in range(directions)])
    for name, tensor in list(module.named_parameters(recurse=False)):
        kept = tensor.index_select(0, gates)
        if name.startswith("weight_hh"):
            kept = kept.index_select(1, hidden)
        elif name.startswith("weight_ih") and "_l0" not in name:
            kept = kept.index_select(1, stacked)
        elif name.startswith("weight_ih") and inputs is not None:
            kept = kept.index_select(1, inputs.to(kept.device))
        assign(module, name, kept)
    module.hidden_size = len(hidden)
    if inputs is not None:
        module.input_size = len(inputs)
    module._init_flat_weights()  # the fused kernel reads its own list of the parameters


def dense_weight(module: nn.Module) -> Tensor:
    """A dense layer's weight as [out, in], whichever way the module stores it."""
    return module.weight.t() if is_conv1d(module) else module.weight  # type: ignore[operator, return-value]


def factored(module: nn.Module, down: Tensor, up: Tensor) -> FactoredLinear:
    """A factored layer with the module's bias, device and dtype. down: [rank, in], up: [out, rank]."""
    bias = module.bias
    new = empty_factors(module, down.shape[0])
    with torch.no_grad():
        new.down.weight.copy_(down)
        new.up.weight.copy_(up)
        if bias is not None:
            new.up.bias.copy_(bias)  # type: ignore[arg-type]
    return new


def empty_factors(module: nn.Module, rank: int) -> FactoredLinear:
    """A factored layer of the module's size with arbitrary weights; raises TypeError on anything but a dense layer."""
    if not is_dense(module):
        raise TypeError(f"{type(module).__name__} is no dense layer")
    weight = dense_weight(module)
    outputs, inputs = weight.shape
    return FactoredLinear(inputs, outputs, rank, bias=module.bias is not None).to(weight.device, weight.dtype)


def is_norm(module: nn.Module) -> bool:
    """Batch, layer or root-mean-square normalization, whoever wrote it."""
    return isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm) or "RMSNorm" in type(module).__name__


def assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a copy of the tensor in place of a parameter or buffer."""
    tensor = tensor.detach().clone()
    old = getattr(module, name)
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        setattr(module, name, tensor)


def _resized(module: nn.Module, names: tuple[str, ...], size: int) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, size)

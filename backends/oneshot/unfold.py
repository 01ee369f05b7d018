"""Convolutions as products of one matrix: what they read at each position of their output, as a row.

    weight [out, in, *kernel] -> [out, kernel · in]      x [batch, in, *size] -> [batch, positions, kernel · in]

Channels at one place of the kernel stand side by side: those are what N:M kernels for convolutions group.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

Unfolding = nn.Conv1d | nn.Conv2d


def unfolds(module: nn.Module) -> bool:
    """Whether a module is a convolution of one group along one or two axes; transposed ones are none."""
    return isinstance(module, Unfolding) and module.groups == 1


def as_matrix(weight: Tensor) -> Tensor:
    """The weight of a convolution as [out, kernel · in]."""
    return weight.movedim(1, -1).flatten(1)


def from_matrix(matrix: Tensor, weight: Tensor) -> Tensor:
    """A matrix in the shape of the convolution's weight: what `as_matrix` undoes."""
    outputs, inputs, *kernel = weight.shape
    return matrix.reshape(outputs, *kernel, inputs).movedim(-1, 1)


def unfolded(module: Unfolding, x: Tensor) -> Tensor:
    """What a convolution multiplies at each position of its output: [batch, positions, kernel · in]."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    if isinstance(module, nn.Conv1d):  # an image of one row
        size, dilation, stride = ((1, *given) for given in (module.kernel_size, module.dilation, module.stride))
        x = x.unsqueeze(-2)
    else:
        size, dilation, stride = module.kernel_size, module.dilation, module.stride
    if x.dim() == 3:  # without a batch
        x = x[None]
    columns = F.unfold(x, size, dilation, stride=stride)  # [batch, in · kernel, positions]
    by_channel = columns.view(len(columns), module.in_channels, -1, columns.shape[2])
    return by_channel.permute(0, 3, 2, 1).flatten(2)

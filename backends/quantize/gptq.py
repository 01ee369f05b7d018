"""GPTQ: columns rounded one after the other, the rest making up for it (arXiv:2210.17323, section 4). Tensors only."""

from __future__ import annotations

import torch
from torch import Tensor

from backends.oneshot.solve import BLOCK, Column, inverse_factor, propagate
from backends.oneshot.statistics import Inputs
from backends.quantize.grid import grid, on_grid


def gptq(
    weight: Tensor, read: Inputs, bits: int, group_size: int, symmetric: bool, damping: float, reorder: bool = False
) -> tuple[Tensor, Tensor, Tensor, float]:
    """The rounded matrix [out, in], its scales and zero points [out, groups], and the damping that H took.

    weight: [out, in]  read: what it reads. `group_size` ≤ 0: one scale per row, from the weights as given. A group's
    scale is taken from its weights as they are when their block of columns begins, as the authors' code does. With
    `reorder` the columns with the largest inputs come first, and scales are taken from the weights as given, so that
    groups stay neighbors in the file. Zeros of a pruned matrix stay zero.
    """
    inputs = weight.shape[1]
    nonzero = (weight != 0).t()  # [in, out]
    kept = None if bool(nonzero.all()) else nonzero
    size = inputs if group_size <= 0 else group_size
    order = read.norms.argsort(descending=True, stable=True) if reorder else None
    places = range(inputs) if order is None else order.tolist()  # once: a GPU is waited for
    scales = weight.new_zeros(len(weight), -(-inputs // size))
    zeros = torch.zeros_like(scales)
    fixed_before = reorder or group_size <= 0
    if fixed_before:
        for group in range(scales.shape[1]):
            scales[:, group], zeros[:, group] = grid(weight[:, group * size : (group + 1) * size], bits, symmetric)

    def choose(start: int, columns: Tensor, diagonal: Tensor) -> Column:
        given = columns.clone()

        def column(at: int, now: Tensor) -> Tensor:
            place = places[start + at]
            group = place // size
            if not fixed_before and place % size == 0:
                found = grid(given[at : at + size].t(), bits, symmetric)
                scales[:, group], zeros[:, group] = found
            rounded = on_grid(now, scales[:, group], zeros[:, group], bits)
            return rounded if kept is None else rounded * kept[place]

        return column

    block = BLOCK if fixed_before else max(BLOCK // size, 1) * size  # whole groups
    if order is None:
        factor, used = read.factor(damping)
        return propagate(weight, factor, choose, block), scales, zeros, used
    factor, used = inverse_factor(read.hessian[order][:, order], damping)
    rounded = torch.empty_like(weight)
    rounded[:, order] = propagate(weight[:, order], factor, choose, block)
    return rounded, scales, zeros, used

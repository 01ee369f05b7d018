"""What stays of a matrix, rounded as it is pruned: later columns make up for both (arXiv:2301.00774, section 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from backends.oneshot.solve import Column
from backends.quantize.grid import grid, on_grid


class Rounding:
    """Columns rounded to values that each group of them takes from its weights when their block begins."""

    def __init__(self, weight: Tensor, bits: int, group_size: int) -> None:
        """weight: [out, in]. Scales and zero points [out, groups] are complete when all columns have passed."""
        self.bits, self.group_size = bits, group_size
        self.scales = weight.new_zeros(len(weight), -(-weight.shape[1] // group_size))
        self.zeros = torch.zeros_like(self.scales)

    def __call__(self, start: int, columns: Tensor, diagonal: Tensor) -> Column:
        """How the columns [columns, out] of a block are rounded; the block holds whole groups."""
        for at in range(0, len(columns), self.group_size):
            found = grid(columns[at : at + self.group_size].t(), self.bits, symmetric=False)
            number = (start + at) // self.group_size
            self.scales[:, number], self.zeros[:, number] = found

        def column(at: int, now: Tensor) -> Tensor:
            scale, zero = (values[:, (start + at) // self.group_size] for values in (self.scales, self.zeros))
            return on_grid(now, scale, zero, self.bits)

        return column

"""SparseGPT: zeros chosen block by block, the other weights making up for them (arXiv:2301.00774). Tensors only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backends.oneshot.solve import BLOCK, FEW, Column, propagate
from backends.prune.joint import Rounding
from backends.prune.magnitude import smallest
from backends.prune.masks import kept_in_groups


def sparsegpt(
    weight: Tensor,
    factor: Tensor,
    ratio: float,
    pattern: tuple[int, int] = (0, 0),
    then: Rounding | None = None,
) -> Tensor:
    """The matrix with `ratio` of its weights set to zero, or all but N of M neighbors in a row.

    weight: [out, in]  factor: R of `inverse_factor` [in, in]. Score: w² / [H⁻¹]ⱼⱼ, where R's diagonal squared stands
    for the inverse of what is left of H when column j comes (section 3.2); the lowest of each 128 columns go, those of
    an N:M group when its first column comes. `then` rounds what stays (section 3.5: pruning and quantization jointly).
    """

    def choose(start: int, columns: Tensor, diagonal: Tensor) -> Column:
        if pattern[1]:
            kept = torch.ones_like(columns, dtype=torch.bool)
        else:
            scores = (columns / diagonal[:, None]).square().flatten()
            before, after = (round(ratio * len(weight) * end) for end in (start, start + len(columns)))
            kept = ~smallest(scores, after - before).view(columns.shape)

        rounded = None if then is None else then(start, columns, diagonal)

        def column(at: int, now: Tensor) -> Tensor:
            if pattern[1] and at % pattern[1] == 0:
                group = slice(at, at + pattern[1])
                scores = (columns[group] / diagonal[group, None]).square()
                kept[group] = kept_in_groups(scores.t(), *pattern).t()
            return (now if rounded is None else rounded(at, now)) * kept[at]

        return column

    among = pattern[1] or 1  # the changes of all columns before a group are in when its first one comes
    whole = among if then is None else math.lcm(among, then.group_size)
    block, few = max(BLOCK // whole, 1) * whole, max(FEW // among, 1) * among
    return propagate(weight, factor, choose, block, few)

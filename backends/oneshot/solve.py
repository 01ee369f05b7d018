"""Changing a matrix column by column, the columns that follow making up for each change: what SparseGPT and GPTQ share.

    min ‖(W − Ŵ)·X‖²    H = X·Xᵀ + damping    H⁻¹ = Rᵀ·R, R upper triangular

Once column j is fixed at ŵⱼ, the best columns after it are W − (wⱼ − ŵⱼ) / Rⱼⱼ · Rⱼ (arXiv:2210.17323, section 4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 128  # columns whose changes reach the rest of the matrix in one product
FEW = 32  # columns whose changes reach the rest of their block in one product
GROWTH, TRIES = 10.0, 6  # of the damping, where the Hessian has no Cholesky factor

# (first column, those columns [columns, out], the diagonal of R there [columns]) -> (number in the block, column) -> ŵ
Column = Callable[[int, Tensor], Tensor]
Chooser = Callable[[int, Tensor, Tensor], Column]


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """R [in, in], upper triangular with RᵀR = (H + damping · mean(diag H) · I)⁻¹, and the damping that it took.

    From H = U·Uᵀ with U upper triangular, R = U⁻¹: one factorization and one inversion of a triangle, where the authors
    invert H and factor it again. An input that is always 0 gets a diagonal of 1. Where rounding leaves H without a
    factor, the damping grows tenfold until it has one. Raises ValueError where none helps: H holds NaN or infinity.
    """
    diagonal = hessian.diagonal()
    hessian = hessian + torch.diag((diagonal == 0).to(hessian.dtype))
    mean = hessian.diagonal().mean()
    for attempt in range(TRIES):
        used = damping * GROWTH**attempt
        damped = hessian + torch.diag((used * mean).expand(len(hessian)))
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed and bool(torch.isfinite(lower).all()):
            upper = lower.flip(0, 1)
            eye = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
            return torch.linalg.solve_triangular(upper, eye, upper=True), used
    raise ValueError("the Hessian is not positive definite, whatever is added to its diagonal")


def propagate(weight: Tensor, factor: Tensor, choose: Chooser, block: int = BLOCK, few: int = FEW) -> Tensor:
    """The matrix with every column replaced by what `choose` makes of it. weight: [out, in]  factor: R [in, in]

    `choose(start, columns, diagonal)` sees a block as it is when its turn comes, and is then asked for each column as
    it is when *its* turn comes. `columns` is a view that goes on changing.
    """
    w = weight.t().contiguous()  # [in, out]: columns lie together
    fixed = torch.empty_like(w)
    diagonal = factor.diagonal()
    for start in range(0, len(w), block):
        stop = min(start + block, len(w))
        columns, errors = w[start:stop], torch.empty_like(w[start:stop])
        column = choose(start, columns, diagonal[start:stop])
        for first in range(0, stop - start, few):
            last = min(first + few, stop - start)
            rows = factor[start + first : start + last, start + first : start + last]
            for at in range(first, last):
                fixed[start + at] = column(at, columns[at])
                errors[at] = (columns[at] - fixed[start + at]) / diagonal[start + at]
                columns[at + 1 : last] -= rows[at - first, at - first + 1 :, None] * errors[at]
            rest = factor[start + first : start + last, start + last : stop]
            columns[last:] -= rest.t() @ errors[first:last]
        w[stop:] -= factor[start:stop, stop:].t() @ errors
    return fixed.t().contiguous()

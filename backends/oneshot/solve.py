"""Changing a matrix column by column, the columns that follow making up for each change: what SparseGPT and GPTQ share.

    min ‖(W − Ŵ)·X‖²    H = X·Xᵀ + damping    H⁻¹ = Rᵀ·R, R upper triangular

Once column j is fixed at ŵⱼ, the best columns after it are W − (wⱼ − ŵⱼ) / Rⱼⱼ · Rⱼ (arXiv:2210.17323, section 4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 128  # columns that a method looks at together
FEW = 8  # columns whose changes reach one another at once
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
    diagonal = torch.where(hessian.diagonal() == 0, 1, hessian.diagonal())
    mean = diagonal.mean()
    for attempt in range(TRIES):
        used = damping * GROWTH**attempt
        damped = hessian.flip(0, 1)  # a copy: a wide layer's Hessian takes gigabytes, so few live at once
        damped.diagonal().copy_((diagonal + used * mean).flip(0))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed and bool(torch.isfinite(lower).all()):
            upper = lower.flip(0, 1)
            del damped, lower
            eye = torch.eye(len(upper), dtype=upper.dtype, device=upper.device).t()  # columns together: solved in place
            return torch.linalg.solve_triangular(upper, eye, upper=True, out=eye), used
    raise ValueError("the Hessian is not positive definite, whatever is added to its diagonal")


def propagate(weight: Tensor, factor: Tensor, choose: Chooser, block: int = BLOCK, few: int = FEW) -> Tensor:
    """The matrix with every column replaced by what `choose` makes of it. weight: [out, in]  factor: R [in, in]

    `choose(start, columns, diagonal)` sees a block as it is when its turn comes, and is then asked for each column as
    it is when *its* turn comes. `columns` is a view that goes on changing.

    Between two halves of the columns, the changes of the first reach the second in one product, and each half is solved
    by halves: fewer and larger products than the authors', who carry every change through the rest of its block.
    """
    w = weight.t().contiguous()  # [in, out]: columns lie together
    errors, diagonal = torch.empty_like(w), factor.diagonal()

    def carry(start: int, middle: int, stop: int) -> None:
        w[middle:stop].addmm_(factor[start:middle, middle:stop].t(), errors[start:middle], alpha=-1)

    def solve_block(start: int, stop: int) -> None:
        column = choose(start, w[start:stop], diagonal[start:stop])

        def solve_few(first: int, last: int) -> None:
            for at in range(first, last):
                now, error = w[at], errors[at]
                fixed = column(at - start, now)
                torch.sub(now, fixed, out=error).div_(diagonal[at])
                w[at + 1 : last].addr_(factor[at, at + 1 : last], error, alpha=-1)
                now.copy_(fixed)

        _by_halves(start, stop, few, solve_few, carry)

    _by_halves(0, len(w), block, solve_block, carry)
    return w.t().contiguous()


# outside of `propagate`: a closure that calls itself would keep its tensors until the garbage collector comes
def _by_halves(
    start: int, stop: int, unit: int, solve: Callable[[int, int], None], carry: Callable[[int, int, int], None]
) -> None:
    if stop - start <= unit:
        solve(start, stop)
        return
    middle = start + -(-(stop - start) // unit) // 2 * unit
    _by_halves(start, middle, unit, solve, carry)
    carry(start, middle, stop)
    _by_halves(middle, stop, unit, solve, carry)

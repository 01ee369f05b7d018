"""What a layer reads on calibration data, in the numbers that one-shot methods need."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from backends.oneshot.solve import inverse_factor
from knowledge.values import InputError

CHUNK = 1 << 16  # tokens that are widened to float32 at a time
LEAF, CUDA_LEAF = 128, 1024  # columns whose products are computed together: few leave most of a GPU idle


@dataclass
class Inputs:
    """Sums over every token that a layer read; chunks add up."""

    width: int
    tokens: int = 0
    squares: Tensor | None = None  # [in], sum of x²
    products: Tensor | None = None  # [in, in], sum of x·xᵀ
    routed: bool = False  # whether an expert read it, to which some of the tokens are sent
    factors: dict[float, tuple[Tensor, float]] = field(default_factory=dict)  # by damping, once for all that read it

    def add(self, x: Tensor, gram: bool) -> None:
        """Count tokens in. x: [..., in]"""
        for part in x.reshape(-1, self.width).split(CHUNK):  # type: ignore[no-untyped-call]
            part = part.float()
            self.tokens += len(part)
            if gram:
                self.products = _plus(self.products, gram_matrix(part))
            else:
                self.squares = _plus(self.squares, part.square().sum(0))

    @property
    def norms(self) -> Tensor:
        """‖x‖₂ of each input over all tokens. [in]"""
        squares = self.products.diagonal() if self.products is not None else self.squares
        assert squares is not None
        return squares.clamp(min=0).sqrt()

    @property
    def second_moment(self) -> Tensor:
        """The mean of x·xᵀ. [in, in]"""
        assert self.products is not None
        return self.products / max(self.tokens, 1)

    @property
    def hessian(self) -> Tensor:
        """2/n · Σ x·xᵀ, the second derivative of the mean squared error of each output. [in, in]"""
        return self.second_moment.mul_(2)

    @property
    def idle(self) -> Tensor:
        """True for inputs that were 0 at every token. [in]"""
        return self.norms == 0

    def factor(self, damping: float) -> tuple[Tensor, float]:
        """`inverse_factor` of the Hessian, and the damping that it took."""
        if damping not in self.factors:
            self.factors[damping] = inverse_factor(self.hessian, damping)
        return self.factors[damping]

    def check(self, path: str) -> None:
        """Raise InputError naming the layer where an activation was NaN or infinite."""
        if not bool(torch.isfinite(self.norms).all()):
            bad = int((~torch.isfinite(self.norms)).sum())
            problem = f"reads NaN or infinity in {bad} of {self.width} inputs on the calibration data"
            raise InputError("model", path, problem, "give sound weights, or other calibration data")

    def check_tokens(self, path: str) -> None:
        """Raise InputError for fewer tokens than inputs: then the Hessian says nothing of some directions."""
        if self.tokens < self.width:
            problem = f"{self.tokens:,} tokens are too few for the Hessian of {path}, which has {self.width:,} inputs"
            raise InputError("calibration", "", problem, f"give at least {self.width:,} tokens")

    @classmethod
    def alike(cls, width: int, device: torch.device | None = None) -> Inputs:
        """As if every input had been 1, alone: for a matrix that nothing was read by."""
        return cls(width, width, torch.ones(width, device=device), torch.eye(width, device=device))


def gram_matrix(x: Tensor) -> Tensor:
    """xᵀ·x. x: [tokens, in]  The products of two halves of the columns are computed once for both places.

    A quarter to almost half of the products of more than LEAF columns are saved: of n², n · (n + LEAF) / 2 are left.
    """
    width = x.shape[1]
    products = x.new_empty(width, width)
    _fill(products, x, CUDA_LEAF if x.is_cuda else LEAF)
    return products


def _fill(products: Tensor, x: Tensor, leaf: int) -> None:
    width, half = x.shape[1], x.shape[1] // 2
    if width <= leaf:
        torch.mm(x.t(), x, out=products)
        return
    left, right = x[:, :half], x[:, half:]
    _fill(products[:half, :half], left, leaf)
    _fill(products[half:, half:], right, leaf)
    products[:half, half:] = left.t() @ right
    products[half:, :half] = products[:half, half:].t()


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)

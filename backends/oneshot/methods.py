"""One-shot methods as the engine calls them: a matrix and what it reads go in, the new matrix comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.oneshot.statistics import Inputs
from backends.prune.magnitude import smallest
from backends.prune.masks import kept_in_groups
from backends.prune.sparsegpt import sparsegpt
from backends.prune.wanda import wanda
from backends.quantize.gptq import gptq
from backends.quantize.grid import dequantize, quantize

DAMPING = 0.01  # of the mean of the Hessian's diagonal, as the authors of SparseGPT and GPTQ have it
NM = tuple[int, int]


@dataclass(frozen=True)
class Outcome:
    """A matrix after its method."""

    weight: Tensor  # [out, in]
    scales: Tensor | None = None  # [out, groups], of a quantized one
    zeros: Tensor | None = None
    damping: float = 0.0  # that its Hessian took, where there was one


@dataclass(frozen=True)
class Method:
    """What a method needs of a layer's inputs, and what it does with them."""

    name: str
    apply: Callable[[str, Tensor, Inputs], Outcome]  # (path, weight [out, in] in float32, inputs)
    products: bool = False  # whether it needs the Hessian
    reads: bool = True  # whether it needs data at all
    before: bool = False  # whether it wants what a block's layers read before any of them is changed


Ratio = Callable[[str], float]  # of a path


def magnitude_method(ratio: Ratio, pattern: NM = (0, 0)) -> Method:
    """The smallest weights of each matrix go, or all but N of M neighbors."""

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        size = weight.abs()
        if pattern[1]:
            return Outcome(weight * kept_in_groups(size, *pattern))
        return Outcome(weight * ~smallest(size.flatten(), round(ratio(path) * size.numel())).view(size.shape))

    return Method("magnitude", apply, reads=False)


def wanda_method(ratio: Ratio, pattern: NM = (0, 0)) -> Method:
    """See `wanda`. Norms are those before a block is changed: what pruned layers give is smaller."""

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        return Outcome(wanda(weight, inputs.norms, ratio(path), pattern))

    return Method("wanda", apply, before=True)


def sparsegpt_method(ratio: Ratio, pattern: NM = (0, 0), damping: float = DAMPING) -> Method:
    """See `sparsegpt`. Weights on inputs that are always 0 go first."""

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        factor, used = inputs.factor(damping)
        return Outcome(sparsegpt(weight * ~inputs.idle, factor, ratio(path), pattern), damping=used)

    return Method("sparsegpt", apply, products=True)


def gptq_method(bits: int, group_size: int, symmetric: bool, damping: float = DAMPING, reorder: bool = False) -> Method:
    """See `gptq`."""

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        return Outcome(*gptq(weight, inputs, bits, group_size, symmetric, damping, reorder))

    return Method("gptq", apply, products=True)


def rounding_method(bits: int, group_size: int, symmetric: bool) -> Method:
    """Round to nearest."""

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        codes, scales, zeros = quantize(weight, bits, group_size, symmetric)
        return Outcome(dequantize(codes, scales, zeros, group_size), scales, zeros.to(torch.float32))

    return Method("round", apply, reads=False)

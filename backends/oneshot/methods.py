"""One-shot methods as the engine calls them: a matrix and what it reads go in, the new matrix comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.oneshot.fold import Folds
from backends.oneshot.matrices import Matrix
from backends.oneshot.statistics import Inputs
from backends.prune.joint import Rounding
from backends.prune.magnitude import smallest
from backends.prune.masks import kept_in_groups
from backends.prune.sparsegpt import sparsegpt
from backends.prune.wanda import wanda
from backends.quantize.awq import awq, channel_factors
from backends.quantize.gptq import gptq
from backends.quantize.grid import dequantize, quantize
from knowledge.roles import role_of

DAMPING = 0.01  # of the mean of the Hessian's diagonal, as the authors of SparseGPT and GPTQ have it
NM = tuple[int, int]


@dataclass(frozen=True)
class Outcome:
    """A matrix after its method."""

    weight: Tensor  # [out, in]
    scales: Tensor | None = None  # [out, groups], of a quantized one
    zeros: Tensor | None = None
    damping: float = 0.0  # that its Hessian took, where there was one
    factors: Tensor | None = None  # [in], that the weight was multiplied by before rounding, and divided by after


@dataclass(frozen=True)
class Rounded:
    """The evenly spaced values that a method's weights lie on."""

    bits: int
    group_size: int  # ≤ 0: a scale for each row
    symmetric: bool


@dataclass(frozen=True)
class Method:
    """What a method needs of a layer's inputs, and what it does with them."""

    name: str
    apply: Callable[[str, Tensor, Inputs], Outcome]  # (path, weight [out, in] in float32, inputs)
    products: bool = False  # whether it needs the products of inputs
    inverse: bool = False  # whether it inverts them: then there must be as many tokens as inputs
    reads: bool = True  # whether it needs data at all
    before: bool = False  # whether it wants what a block's layers read before any of them is changed
    rounded: Rounded | None = None  # what its weights lie on, where it rounds them
    folding: Callable[[Folds], Method] | None = None  # the same with factors that go into norms alone, where it has any


Ratio = Callable[[str], float]  # of a path


def magnitude_method(ratio: Ratio, pattern: NM = (0, 0)) -> Method:
    """The smallest weights of each matrix go, or all but N of M neighbors."""

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        size = weight.abs()
        if pattern[1]:
            return Outcome(weight * kept_in_groups(size, *pattern))
        return Outcome(weight * ~smallest(size.flatten(), round(ratio(path) * size.numel())).view(size.shape))

    return Method("magnitude", apply, reads=False)


def wanda_method(ratio: Ratio, pattern: NM = (0, 0), exact: bool = False) -> Method:
    """See `wanda`. Norms are those before a block is changed: what pruned layers give is smaller."""

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        return Outcome(wanda(weight, inputs.norms, ratio(path), pattern, exact))

    return Method("wanda", apply, before=True)


def sparsegpt_method(
    ratio: Ratio, pattern: NM = (0, 0), damping: float = DAMPING, forms: Mapping[str, tuple[int, int]] | None = None
) -> Method:
    """See `sparsegpt`. Weights on inputs that are always 0 go first. `forms` has bits and group size of paths that are
    rounded as well."""

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        factor, used = inputs.factor(damping)
        form = (forms or {}).get(path)
        then = Rounding(weight, *form) if form else None
        found = sparsegpt(weight * ~inputs.idle, factor, ratio(path), pattern, then)
        scales, zeros = (then.scales, then.zeros) if then else (None, None)
        return Outcome(found, scales, zeros, damping=used)

    return Method("sparsegpt", apply, products=True, inverse=True)


def gptq_method(bits: int, group_size: int, symmetric: bool, damping: float = DAMPING, reorder: bool = False) -> Method:
    """See `gptq`."""

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        return Outcome(*gptq(weight, inputs, bits, group_size, symmetric, damping, reorder))

    return Method("gptq", apply, products=True, inverse=True, rounded=Rounded(bits, group_size, symmetric))


def rounding_method(bits: int, group_size: int, symmetric: bool) -> Method:
    """Round to nearest."""

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        codes, scales, zeros = quantize(weight, bits, group_size, symmetric)
        return Outcome(dequantize(codes, scales, zeros, group_size), scales, zeros.to(torch.float32))

    return Method("round", apply, reads=False, rounded=Rounded(bits, group_size, symmetric))


UNCLIPPED = {"attention_q", "attention_k", "attention_qkv"}  # their outputs are multiplied by one another
MULTIPLIED = {"attention_o", "ffn_down"}  # no norm before them that would divide their inputs for nothing
WORTH_A_MULTIPLICATION = 0.9


def awq_method(
    bits: int,
    group_size: int,
    symmetric: bool,
    grid: int,
    clip: bool,
    readers: Mapping[str, Sequence[Matrix]],
    folds: Folds | None = None,
) -> Method:
    """See `awq`. `readers` of a path: all matrices that read the same, which get one set of factors.

    With `folds`, only layers behind a norm that takes the division get factors, and such as it can hold. The down
    projection of an expert has factors of its own, by which its up projection divides for nothing; what reads the
    tokens themselves has none: the experts share them with the router.
    """
    found: dict[str, Tensor] = {}  # by the first reader

    def factors(weights: Sequence[Tensor], role: str, inputs: Inputs) -> Tensor:
        worth = WORTH_A_MULTIPLICATION if role in MULTIPLIED and not inputs.routed else 1.0
        return channel_factors(weights, inputs.second_moment, bits, group_size, symmetric, grid, worth)

    def shared(path: str, weight: Tensor, role: str, inputs: Inputs) -> Tensor:
        if (folds is not None and path not in folds) or (inputs.routed and role != "ffn_down"):
            return torch.ones_like(inputs.norms)
        together = readers.get(path)
        if not together:
            alone = factors([weight], role, inputs)
            return alone if folds is None else folds.nearest(path, alone)
        if (first := together[0].path) not in found:  # asked for by the first that comes, before any is changed
            found[first] = factors([m.read().float() for m in together], role, inputs)
            if folds is not None:
                found[first] = folds.nearest(first, found[first])
        return found[first]

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        role = role_of(path, "linear", *weight.shape)
        by_channel = shared(path, weight, role, inputs)
        parts = awq(
            weight, by_channel, inputs.second_moment, bits, group_size, symmetric, clip and role not in UNCLIPPED
        )
        return Outcome(*parts, factors=by_channel)

    form = bits, group_size, symmetric
    return Method(
        "awq",
        apply,
        products=True,
        rounded=Rounded(*form),
        folding=lambda folds: awq_method(*form, grid, clip, readers, folds),
    )

"""Low-rank factorization: decomposing and choosing a rank (tensor functions), and replacing layers (the model)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

from backends.context import Context
from backends.layer_kinds import is_dense
from backends.models import LoadedModel
from backends.structure import changed
from backends.surgery import dense_weight, factored, replace_module
from knowledge.techniques.factorize import Svd
from knowledge.values import Decision, Refusal

CACHE_BYTES = 512 * 2**20

Factors = tuple[Tensor, Tensor, Tensor]

# -- tensors ---------------------------------------------------------------------------------------


def decompose(weight: Tensor) -> Factors:
    """u [out, k], s [k], v [k, in] with weight = u · diag(s) · v, k = min(out, in), in float32 or wider."""
    wide = weight if weight.dtype == torch.float64 else weight.float()
    u, s, v = torch.linalg.svd(wide, full_matrices=False)
    return u, s, v


def two_factors(factors: Factors, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-`rank` approximation as down [rank, in] and up [out, rank], the singular values shared evenly."""
    u, s, v = factors
    root = s[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def rank_for_energy(s: Tensor, energy: float) -> int:
    """Smallest rank that holds this share of the squared singular values.

    >>> rank_for_energy(torch.tensor([3.0, 1.0, 1.0, 1.0]), 0.75)
    1
    """
    share = s.double().square().cumsum(0)
    return int(torch.searchsorted(share, energy * share[-1] * (1 - 1e-12))) + 1


# -- the model -------------------------------------------------------------------------------------


class Decompositions:
    """Decompositions by the content of the weight, bounded in bytes: search tries many ranks of one layer."""

    def __init__(self, bound_bytes: int = CACHE_BYTES) -> None:
        self.bound_bytes, self.bytes = bound_bytes, 0
        self.found: OrderedDict[str, Factors] = OrderedDict()

    def of(self, weight: Tensor) -> Factors:
        """u, s, v of a weight [out, in]."""
        data = weight.detach().cpu().contiguous()
        key = f"{tuple(data.shape)}{data.dtype}{weight.device}" + hashlib.sha256(data.numpy().data).hexdigest()
        if key not in self.found:
            self.found[key] = decompose(weight.detach())
            self.bytes += _bytes(self.found[key])
            while self.bytes > self.bound_bytes and len(self.found) > 1:
                self.bytes -= _bytes(self.found.popitem(last=False)[1])
        self.found.move_to_end(key)
        return self.found[key]


_decompositions = Decompositions()


def apply(technique: Svd, model: LoadedModel, context: Context) -> tuple[LoadedModel, Decision]:
    """Replace dense layers by two thin ones, in place; layers where that would not be smaller stay and are named.

    The decision holds the rank of each replaced layer, and one refusal for each that stayed.
    """
    ranks: dict[str, int] = {}
    skipped = []
    rows = np.flatnonzero(technique.touches(context.layers))
    for path in context.layers.path[rows].tolist():
        if (problem := _not_replaceable(model.module, path)) is not None:
            skipped.append(_refusal(technique, f"{path}: {problem}", "a dense layer that its module calls"))
            continue
        module = model.module.get_submodule(path)
        weight = dense_weight(module)
        outputs, inputs = weight.shape
        factors = _decompositions.of(weight)
        rank = _rank(technique, factors[1], outputs, inputs)
        if rank * (outputs + inputs) >= outputs * inputs:
            observed = f"{path}: rank {rank} of a {outputs}×{inputs} layer"
            limit = outputs * inputs / (outputs + inputs)
            skipped.append(_refusal(technique, observed, f"a rank below break-even ({limit:.1f})"))
            continue
        replace_module(model.module, path, factored(module, *two_factors(factors, rank)))
        ranks[path] = rank
    decision = Decision(technique=technique.id, ranks=ranks, skipped=tuple(skipped))
    return changed(model, decision), decision


def _rank(technique: Svd, s: Tensor, outputs: int, inputs: int) -> int:
    if technique.energy is not None:
        return rank_for_energy(s, technique.energy)
    return int(technique.rank(np.array(outputs), np.array(inputs)))


def _not_replaceable(root: nn.Module, path: str) -> str | None:
    """Why a layer cannot be exchanged; torch's own attention and encoder read the weights of their parts."""
    parent, _, name = path.rpartition(".")
    owner = root.get_submodule(parent)
    if isinstance(owner, nn.MultiheadAttention | nn.TransformerEncoderLayer):
        return f"{type(owner).__name__} reads its weights without calling it"
    module = getattr(owner, name)
    return None if is_dense(module) else f"is a {type(module).__name__}"


def _refusal(technique: Svd, observed: str, required: str) -> Refusal:
    return Refusal(
        technique=technique.id,
        rule="svd-layer-kept",
        observed=observed,
        required=required,
        remedy="this layer stays whole; the others are factored",
    )


def _bytes(factors: Factors) -> int:
    return sum(f.numel() * f.element_size() for f in factors)

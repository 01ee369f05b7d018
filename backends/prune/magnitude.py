"""Magnitude pruning: which weights are smallest (tensor functions), and setting them to zero (the model)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from backends.context import Context
from backends.locate import located, weight_tensors
from backends.models import LoadedModel
from backends.prune.masks import kept_in_groups
from backends.structure import changed
from knowledge.techniques.patterns import by_layer, names
from knowledge.techniques.prune import Magnitude
from knowledge.values import Decision

CUDA_TOPK = 2**27  # values that may be listed with their places

# -- tensors ---------------------------------------------------------------------------------------


def smallest(scores: Tensor, count: int) -> Tensor:
    """True for exactly `count` entries of a flat tensor, those with the lowest scores; ties go by position.

    By `kthvalue`, which has no limit on size (`torch.quantile` fails above 2^24 entries); on CUDA, where one block of
    threads would do all of that, by `topk`.

    >>> smallest(torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0]), 2).tolist()
    [False, True, False, True, False]
    """
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if scores.is_cuda and count < CUDA_TOPK:
        limit = torch.topk(scores, count, largest=False, sorted=False).values.amax()
    else:
        limit = torch.kthvalue(scores, count).values
    below = scores < limit
    ties = torch.nonzero(scores == limit).flatten()[: count - int(below.sum())]
    below[ties] = True
    return below


def kept_locally(weights: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """Mask of the weights that stay: each tensor loses `ratio` of its own. Shapes as given, bool."""
    return [~smallest(w.abs().flatten(), round(ratio * w.numel())).view(w.shape) for w in weights]


def kept_globally(weights: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """Mask of the weights that stay: all tensors together lose `ratio` of their weights, the smallest of all."""
    scores = torch.cat([w.abs().flatten() for w in weights])
    kept = ~smallest(scores, round(ratio * scores.numel()))
    parts = torch.split(kept, [w.numel() for w in weights])
    return [part.view(w.shape) for part, w in zip(parts, weights, strict=True)]


def kept_above(weights: Sequence[Tensor], threshold: float) -> list[Tensor]:
    """Mask of the weights that stay: those at least `threshold` in absolute value."""
    return [w.abs() >= threshold for w in weights]


# -- the model -------------------------------------------------------------------------------------


def apply(technique: Magnitude, model: LoadedModel, context: Context) -> tuple[LoadedModel, Decision]:
    """Set the smallest weights of linear, convolution, recurrent and expert layers to zero, in place.

    Norms, embeddings and biases stay, and so does a layer whose weights belong to an embedding. The decision holds the
    share of non-zero weights per layer.
    """
    paths = context.layers.path[technique.touches(context.layers)].tolist()
    layers = {path: weight_tensors(model.module, path) for path in paths}
    weights = {name: weight for found in layers.values() for name, weight in found.items()}
    with torch.no_grad():
        for weight, kept in zip(weights.values(), _masks(technique, model, layers), strict=True):
            weight.masked_fill_(~kept, 0)  # a product would leave −0, which is no zero bit for bit
    shares = {path: density(found) for path, found in layers.items()}
    decision = Decision(technique=technique.id, density=shares, pattern=technique.pattern_name())
    return changed(model, decision), decision


def _masks(technique: Magnitude, model: LoadedModel, layers: Mapping[str, Mapping[str, Tensor]]) -> list[Tensor]:
    """Masks of the weights that stay, in the layers' order."""
    weights = {name: weight.detach() for found in layers.values() for name, weight in found.items()}
    if technique.kept()[1]:
        return [_kept_in_pattern(model, name, weight, technique.kept()) for name, weight in weights.items()]
    if technique.threshold is not None:
        return kept_above(list(weights.values()), technique.threshold)
    masks: dict[str, Tensor] = {}
    for paths in _compared_together(technique, list(layers)):
        ratio = float(by_layer(technique.layer_ratios, paths[:1], technique.ratio)[0])
        inside = [name for path in paths for name in layers[path]]  # of gates or factors, one layer has several
        masks |= zip(inside, kept_globally([weights[name] for name in inside], ratio), strict=True)
    return [masks[name] for name in weights]


def _compared_together(technique: Magnitude, paths: Sequence[str]) -> list[list[str]]:
    """Layers whose weights are compared with each other: those with a ratio of their own are compared with none."""
    own = [path for path in paths if any(names(pattern, path) for pattern, _ in technique.layer_ratios)]
    rest = [path for path in paths if path not in own]
    whole = [rest] if technique.scope == "global" and rest else [[path] for path in rest]
    return [[path] for path in own] + whole


def _kept_in_pattern(model: LoadedModel, name: str, weight: Tensor, pattern: tuple[int, int]) -> Tensor:
    """Mask of one tensor: of neighbors among the inputs the largest stay."""
    place = located(model.module, "" if name == "weight" else name.removesuffix(".weight"))
    transposed = isinstance(place.owner, nn.modules.conv._ConvTransposeNd)  # [in, out/groups, *kernel]
    axis = 0 if transposed else place.axes.inputs
    assert axis is not None
    return kept_in_groups(weight.abs().movedim(axis, -1), *pattern).movedim(-1, axis)


def density(weights: Mapping[str, Tensor]) -> float:
    """Share of a layer's weights that are not zero."""
    return sum(int(torch.count_nonzero(w)) for w in weights.values()) / sum(w.numel() for w in weights.values())


def zero_masks(model: LoadedModel) -> dict[str, Tensor]:
    """Masks by parameter name that keep today's zeros of a pruned model; empty where nothing was pruned before.

    Zeros are read off the weights, so a model that comes back from disk trains on under the same masks.
    """
    pruned = {path for decision in model.structure for path in decision.density}
    found = [weight_tensors(model.module, path) for path in sorted(pruned)]
    return {name: weight.detach() != 0 for tensors in found for name, weight in tensors.items()}

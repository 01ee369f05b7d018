"""Ratios of a model's layers under one total, from what pruning would cost each on calibration data.

Outliers are counted in a block of a transformer with all that is pruned in it, elsewhere in a layer; losses are those
of a layer everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backends.context import Context
from backends.models import LoadedModel
from backends.oneshot.chosen import Forms
from backends.oneshot.matrices import Matrix, matrices
from backends.oneshot.methods import Method, Outcome
from backends.oneshot.run import changed_as_one
from backends.oneshot.statistics import Inputs
from backends.prune.allocation import Numbers, by_losses, by_outliers
from backends.prune.judge import read_batches
from backends.prune.sensitivity import layer_curves
from knowledge.layers import LayerTable
from knowledge.techniques.prune_once import OneShotPruning

OUTLIER = 5.0  # times the mean: what counts as far above it (arXiv:2310.05175, their README's --Hyper_m)


@dataclass(frozen=True)
class Allocation:
    """How paths share a total of zeros."""

    paths: Sequence[str]
    shared: Callable[[float], Numbers]  # total -> the ratio of each path
    curves: Numbers | None  # [paths, LEVELS], what each alone loses; None where that was not asked

    def ratios(self, total: float) -> dict[str, float]:
        """The ratio of every path; together they are `total` of all weights."""
        return dict(zip(self.paths, self.shared(total).tolist(), strict=True))


def allocated(
    technique: OneShotPruning, model: LoadedModel, context: Context, paths: Sequence[str], forms: Forms
) -> Allocation:
    """The technique's allocation over these paths, with losses where it or a budget of loss wants them."""
    weights = np.array([sum(m.read().numel() for m in matrices(model.module, path)) for path in paths], dtype=float)
    curves = None
    if technique.max_loss is not None or technique.allocation == "sensitivity":
        measured = layer_curves(technique, model, context, paths, forms).losses
        curves = np.array([measured[path] for path in paths])
    return Allocation(paths, _shared(technique, model, context, paths, weights, curves), curves)


def _shared(
    technique: OneShotPruning,
    model: LoadedModel,
    context: Context,
    paths: Sequence[str],
    weights: Numbers,
    curves: Numbers | None,
) -> Callable[[float], Numbers]:
    """How paths share a total."""
    if technique.allocation == "sensitivity":
        assert curves is not None
        return lambda ratio: by_losses(curves, weights, ratio, technique.farthest())
    if technique.allocation == "uniform":
        return lambda ratio: np.full(len(paths), ratio)
    number = _part_numbers(context.layers, paths)
    parts: dict[int, list[Matrix]] = {n: [] for n in range(number.max() + 1)}
    for path, n in zip(paths, number.tolist(), strict=True):
        parts[n] += matrices(model.module, path)
    outliers = outlier_shares(model, parts, read_batches(model, context))
    together = np.bincount(number, weights).astype(np.float64)
    return lambda ratio: by_outliers(outliers, together, ratio, technique.farthest())[number]


def _part_numbers(layers: LayerTable, paths: Sequence[str]) -> np.ndarray:
    """Which part each path belongs to."""
    blocks = dict(zip(layers.path.tolist(), layers.block.tolist(), strict=True))
    whole = layers.info.family == "cnn"
    names = [path if whole or blocks[path] < 0 else f"block {blocks[path]}" for path in paths]
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names])


def outlier_shares(
    model: LoadedModel, parts: Mapping[int, Sequence[Matrix]], batches: Sequence[dict[str, Tensor]]
) -> Numbers:
    """The share of weights in each part whose |w| · ‖x‖ is far above the part's mean (arXiv:2310.05175, section 3.1).

    ‖x‖ is the root mean square here: experts read different numbers of tokens.
    """
    sizes: list[Tensor] = []  # of what each matrix reads, as they come

    def note(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        sizes.append(inputs.norms / inputs.tokens**0.5)
        return Outcome(weight)

    shares = []
    found = [matrix for part in parts.values() for matrix in part]
    done, _ = changed_as_one(model, batches, found, Method("outliers", note))
    read = {id(one.matrix): size for one, size in zip(done, sizes, strict=True)}
    for part in parts.values():
        scores = [(m.read().float().abs() * read[id(m)]).flatten() for m in part]
        count = sum(s.numel() for s in scores)
        mean = sum(float(s.sum(dtype=torch.float64)) for s in scores) / count
        shares.append(sum(int((s > OUTLIER * mean).sum()) for s in scores) / count)
    return np.array(shares)

"""What pruning would cost each part of a model, measured on calibration data, and the ratios that follow.

A part is a block of a transformer with all that is pruned in it; elsewhere every layer is one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from backends.context import Context
from backends.losses import soft_loss, vector_loss
from backends.models import LoadedModel
from backends.oneshot.matrices import Matrix, matrices
from backends.oneshot.methods import Method, Outcome
from backends.oneshot.run import calibration_batches, changed_as_one
from backends.oneshot.statistics import Inputs
from backends.prune.allocation import Numbers, by_losses, by_outliers, reach
from knowledge.techniques.prune_once import OneShotPruning

OUTLIER = 5.0  # times the mean: what counts as far above it (arXiv:2310.05175, their README's --Hyper_m)
TOKENS, SAMPLES = 4096, 64  # that parts are measured on, at least: samples that hold the tokens, or images

Parts = Mapping[str, Sequence[Matrix]]
Make = Callable[[Callable[[str], float]], Method]  # a method from the ratio of each path


def allocated(
    technique: OneShotPruning, model: LoadedModel, context: Context, paths: Sequence[str], make: Make
) -> dict[str, float]:
    """The ratio of every path under the technique's allocation; together they are `ratio` of all weights."""
    layers = context.layers
    blocks = dict(zip(layers.path.tolist(), layers.block.tolist(), strict=True))
    whole = layers.info.family == "cnn"
    part_of = {path: path if whole or blocks[path] < 0 else f"block {blocks[path]}" for path in paths}
    parts: dict[str, list[Matrix]] = {}
    for path in paths:
        parts.setdefault(part_of[path], []).extend(matrices(model.module, path))
    weights = np.array([sum(m.read().numel() for m in part) for part in parts.values()], dtype=np.float64)
    batches = few_batches(model, context)
    if technique.allocation == "outliers":
        found = by_outliers(outlier_shares(model, parts, batches), weights, technique.ratio, technique.bound)
    else:
        far = reach(technique.ratio, technique.bound)
        ends = [dict.fromkeys(paths, at) for at in (technique.ratio - far, technique.ratio + far)]
        low, high = (losses_alone(model, parts, batches, make(end.__getitem__)) for end in ends)
        found = by_losses(low, high, weights, technique.ratio, technique.bound)
    by_part = dict(zip(parts, found.tolist(), strict=True))
    return {path: by_part[part_of[path]] for path in paths}


def few_batches(model: LoadedModel, context: Context) -> list[dict[str, Tensor]]:
    """The first calibration samples, in one batch where memory holds it: tokens for the widest Hessian."""
    split = context.data.calibration
    lengths = [a.shape[1] for a in split.inputs.values() if a.ndim == 2]
    tokens = max(TOKENS, int(context.layers.inputs.max()))
    samples = -(-tokens // max(lengths)) if lengths else SAMPLES
    data = dataclasses.replace(context.data, calibration=split.head(samples))
    reading = Method("", lambda path, weight, inputs: Outcome(weight))
    return calibration_batches(model, dataclasses.replace(context, data=data), reading)


def outlier_shares(model: LoadedModel, parts: Parts, batches: Sequence[dict[str, Tensor]]) -> Numbers:
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
        mean = sum(float(s.double().sum()) for s in scores) / count
        shares.append(sum(int((s > OUTLIER * mean).sum()) for s in scores) / count)
    return np.array(shares)


def losses_alone(model: LoadedModel, parts: Parts, batches: Sequence[dict[str, Tensor]], method: Method) -> Numbers:
    """How far the model's outputs go from its own when each part alone is pruned: KL, or 1 − cosine of vectors."""
    with torch.no_grad():
        wanted = [model.forward(batch) for batch in batches]
    alone = dataclasses.replace(method, before=False, inverse=False)
    found = []
    for part in parts.values():
        kept = [matrix.read().clone() for matrix in part]
        try:
            _, given = changed_as_one(model, batches, part, alone)
        finally:
            for matrix, weight in zip(part, kept, strict=True):
                matrix.write(weight)
        each = [_distance(model, g, w, batch) for g, w, batch in zip(given, wanted, batches, strict=True)]
        found.append(float(np.average(each, weights=[len(g) for g in given])))
    return np.array(found)


def _distance(model: LoadedModel, given: Tensor, wanted: Tensor, batch: Mapping[str, Tensor]) -> float:
    if model.output == "embedding":
        return float(vector_loss(given, wanted))
    return float(soft_loss(given, wanted, 1.0, batch.get("attention_mask")))

"""Wanda and SparseGPT on a model: calibration data pass block by block, and matrices lose weights on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from backends.context import Context
from backends.locate import weight_tensors
from backends.models import LoadedModel
from backends.oneshot.cautions import cautions
from backends.oneshot.chosen import method_for
from backends.oneshot.engine import Done
from backends.oneshot.matrices import matrices
from backends.oneshot.run import compress_model
from backends.prune.allocation import LARGEST, NEAR
from backends.prune.judge import Judge
from backends.prune.magnitude import density
from backends.prune.parts import allocated
from backends.quantize.stored import Grid
from backends.structure import changed
from knowledge.layers import LayerTable
from knowledge.techniques.patterns import by_layer
from knowledge.techniques.prune_once import OneShotPruning, SparseGpt
from knowledge.values import Decision, Refusal

BEYOND = 0.1  # of the loss that may be lost: how much more is told


def apply(technique: OneShotPruning, model: LoadedModel, context: Context) -> tuple[LoadedModel, Decision]:
    """Set weights of matrices to zero by what they read, in place; SparseGPT moves the others too.

    The decision holds the share of non-zero weights per layer, which layers no matrix stands for, and where the data
    did not suffice. Raises InputError where they are too few for a block's Hessians, or an activation is not finite,
    naming the layer; RunFailed where `max_loss` leaves no room.
    """
    touched = technique.touches(context.layers)
    odd = [path for path in context.layers.path[touched].tolist() if not _is_matrix(model, path)]
    paths = [path for path in context.layers.path[touched].tolist() if path not in odd]
    forms = _forms(technique, context.layers)
    judge = Judge(model, context) if technique.max_loss is not None else None
    if technique.allocation == "uniform" and judge is None:
        ratios = dict(zip(paths, by_layer(technique.layer_ratios, paths, technique.ratio).tolist(), strict=True))
    else:
        ratios = allocated(technique, model, context, paths, forms)
    done = compress_model(model, context, paths, method_for(technique, {}, ratio=ratios.__getitem__, forms=forms))
    skipped = (*_left_whole(technique, context.layers, odd), *cautions(technique, done))
    if judge is not None:
        skipped += tuple(_off_budget(technique, context.layers, ratios, judge.loss()))
    found = {path: density(weight_tensors(model.module, path)) for path in paths}
    grids = _grids(technique, model, done)
    formats = {path: grid.format for path, _, grid in grids}
    pattern = technique.pattern_name()
    decision = Decision(technique=technique.id, density=found, pattern=pattern, formats=formats, skipped=skipped)
    after = changed(model, decision)
    return replace(after, grids={**model.grids, **{name: grid for _, name, grid in grids}}), decision


def _forms(technique: OneShotPruning, layers: LayerTable) -> dict[str, tuple[int, int]]:
    """Bits and group size of the paths that are rounded too."""
    if not isinstance(technique, SparseGpt):
        return {}
    return dict.fromkeys(layers.path[technique.rounded(layers)].tolist(), (technique.bits, technique.group_size))


def _grids(technique: OneShotPruning, model: LoadedModel, done: Sequence[Done]) -> list[tuple[str, str, Grid]]:
    """Path, name of the parameter and grid of every matrix that was rounded."""
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}
    found = []
    for one in done:
        if isinstance(technique, SparseGpt) and one.outcome.scales is not None:
            form = technique.bits, technique.group_size, technique.accuracy_level
            grid = Grid(*form, one.outcome.scales, one.outcome.zeros)
            found.append((one.matrix.path, names[id(one.matrix.place.weight)], grid))
    return found


def _is_matrix(model: LoadedModel, path: str) -> bool:
    try:
        return bool(matrices(model.module, path))
    except KeyError:
        return False


def _left_whole(technique: OneShotPruning, layers: LayerTable, odd: Sequence[str]) -> Iterator[Refusal]:
    """The convolutions that do not unfold into one matrix, by name."""
    grouped = (layers.kind == "conv") & (layers.groups > 1) & (layers.info.family == "cnn")
    whys = {layers.path[row]: f"a convolution in {layers.groups[row]} groups" for row in grouped.nonzero()[0]}
    for path, why in (whys | dict.fromkeys(odd, "a transposed convolution, or one along three axes")).items():
        yield Refusal(
            technique=technique.id,
            rule="prune-convolution-whole",
            observed=f"{path}: {why} does not unfold into one matrix, and stays whole",
            required="a convolution of one group along one or two axes",
            remedy="use magnitude, which prunes any convolution",
        )


def _off_budget(
    technique: OneShotPruning, layers: LayerTable, ratios: Mapping[str, float], lost: float
) -> Iterator[Refusal]:
    """Where the layers together lose more than each of them alone told, or as many zeros as there can be lose less."""
    asked = technique.max_loss
    assert asked is not None
    if lost > asked * (1 + BEYOND):
        yield Refusal(
            technique=technique.id,
            rule="prune-loss-beyond",
            observed=f"together the layers lose {lost:.2g} on the samples that each was judged on alone",
            required=f"{asked:g}, where their losses add up",
            remedy=f"set max_loss to {asked * asked / lost:.2g}",
        )
    weights = [layers.weights[layers.index(path)] for path in ratios]
    if np.average(list(ratios.values()), weights=weights) > LARGEST - NEAR and lost < asked:
        yield Refusal(
            technique=technique.id,
            rule="prune-loss-unused",
            observed=f"{LARGEST:.0%} of the weights are gone, and {lost:.2g} lost",
            required=f"more zeros for a loss of {asked:g}",
            remedy="set a smaller max_loss",
        )

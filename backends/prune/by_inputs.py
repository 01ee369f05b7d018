"""Wanda and SparseGPT on a model: calibration data pass block by block, and matrices lose weights on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from backends.context import Context
from backends.locate import weight_tensors
from backends.models import LoadedModel
from backends.oneshot.cautions import cautions
from backends.oneshot.chosen import method_for
from backends.oneshot.engine import Done
from backends.oneshot.matrices import matrices
from backends.oneshot.run import compress_model
from backends.prune.magnitude import density
from backends.prune.parts import allocated
from backends.quantize.stored import Grid
from backends.structure import changed
from knowledge.layers import LayerTable
from knowledge.techniques.patterns import by_layer
from knowledge.techniques.prune_once import OneShotPruning, SparseGpt
from knowledge.values import Decision, Refusal


def apply(technique: OneShotPruning, model: LoadedModel, context: Context) -> tuple[LoadedModel, Decision]:
    """Set weights of matrices to zero by what they read, in place; SparseGPT moves the others too.

    The decision holds the share of non-zero weights per layer, which layers no matrix stands for, and where the data
    did not suffice. Raises InputError where they are too few for a block's Hessians, or an activation is not finite,
    naming the layer.
    """
    touched = technique.touches(context.layers)
    odd = [path for path in context.layers.path[touched].tolist() if not _is_matrix(model, path)]
    paths = [path for path in context.layers.path[touched].tolist() if path not in odd]
    make = partial(method_for, technique, {}, forms=_forms(technique, context.layers))
    if technique.allocation == "uniform":
        ratios = dict(zip(paths, by_layer(technique.layer_ratios, paths, technique.ratio).tolist(), strict=True))
    else:
        ratios = allocated(technique, model, context, paths, make)
    done = compress_model(model, context, paths, make(ratios.__getitem__))
    skipped = (*_left_whole(technique, context.layers, odd), *cautions(technique, done))
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

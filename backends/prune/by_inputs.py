"""Wanda and SparseGPT on a model: calibration data pass block by block, and matrices lose weights on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from backends.context import Context
from backends.locate import weight_tensors
from backends.models import LoadedModel
from backends.oneshot.cautions import cautions
from backends.oneshot.chosen import Forms, method_for
from backends.oneshot.engine import Done
from backends.oneshot.matrices import matrices
from backends.oneshot.run import compress_model
from backends.prune.allocation import LARGEST, NEAR
from backends.prune.magnitude import density
from backends.prune.parts import allocated
from backends.prune.to_budget import Totals, pruned_to_budget
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
    naming the layer; RunFailed where `max_loss` leaves no room.
    """
    touched = technique.touches(context.layers)
    odd = [path for path in context.layers.path[touched].tolist() if not _is_matrix(model, path)]
    paths = [path for path in context.layers.path[touched].tolist() if path not in odd]
    forms = _forms(technique, context.layers)
    done, unused = _pruned(technique, model, context, paths, forms)
    skipped = (*_left_whole(technique, context.layers, odd), *cautions(technique, done), *unused)
    found = {path: density(weight_tensors(model.module, path)) for path in paths}
    grids = _grids(technique, model, done)
    formats = {path: grid.format for path, _, grid in grids}
    pattern = technique.pattern_name()
    decision = Decision(technique=technique.id, density=found, pattern=pattern, formats=formats, skipped=skipped)
    after = changed(model, decision)
    return replace(after, grids={**model.grids, **{name: grid for _, name, grid in grids}}), decision


def _pruned(
    technique: OneShotPruning, model: LoadedModel, context: Context, paths: Sequence[str], forms: Forms
) -> tuple[Sequence[Done], list[Refusal]]:
    """Prune these paths by `max_loss`, by `layer_ratios`, or by an allocation of `ratio`."""
    if technique.max_loss is not None:
        totals = pruned_to_budget(technique, model, context, allocated(technique, model, context, paths, forms), forms)
        return totals.done, list(_unused(technique, totals))
    if technique.allocation == "uniform":
        ratios = dict(zip(paths, by_layer(technique.layer_ratios, paths, technique.ratio).tolist(), strict=True))
    else:
        ratios = allocated(technique, model, context, paths, forms).ratios(technique.ratio)
    method = method_for(technique, {}, ratio=ratios.__getitem__, forms=forms)
    return compress_model(model, context, paths, method), []


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
        if isinstance(technique, SparseGpt) and one.scales is not None:
            form = technique.bits, technique.group_size, technique.accuracy_level
            grid = Grid(*form, one.scales, one.zeros)
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


def _unused(technique: OneShotPruning, totals: Totals) -> Iterator[Refusal]:
    """Where as many zeros as there can be lose less than may be lost."""
    asked = technique.max_loss
    assert asked is not None
    if totals.total > LARGEST - NEAR and totals.lost < asked:
        yield Refusal(
            technique=technique.id,
            rule="prune-loss-unused",
            observed=f"{LARGEST:.0%} of the weights are gone, and {totals.lost:.2g} lost",
            required=f"more zeros for a loss of {asked:g}",
            remedy="set a smaller max_loss",
        )

"""What the outputs lose when one layer alone is pruned, at several ratios: measured once for a model, and kept.

    a pass over the samples          what the layers of a block read, nothing being pruned yet
    each layer, each of the ratios   its matrices pruned by that, the outputs compared, the matrices put back

Blocks before the layer's own are not computed again: they give what they gave. Losses depend on the model, the samples
and the method, not on how many zeros are wanted: they are kept under a key that hashes the former, and every total,
and every budget of loss, is solved from them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from backends.blocks import find_blocks
from backends.context import Context
from backends.models import LoadedModel
from backends.oneshot.chosen import Forms, method_for
from backends.oneshot.engine import changed_by_sums, chosen_matrices
from backends.oneshot.matrices import Matrix, matrices, watched
from backends.oneshot.methods import Method
from backends.oneshot.resumed import Resumed
from backends.oneshot.run import is_one_block, padding
from backends.oneshot.sums import Sums, summed
from backends.oneshot.unfold import unfolds
from backends.oneshot.whole import Whole
from backends.prune.allocation import LEVELS
from backends.prune.judge import Judge, read_batches
from backends.store import RECORD, digest
from knowledge.techniques.prune_once import OneShotPruning
from knowledge.values import RunFailed

FREE = {"ratio", "pattern", "layer_ratios", "allocation", "bound", "max_loss"}  # parameters that change no curve

Parts = dict[str, list[Matrix]]  # by path


@dataclass(frozen=True)
class LayerCurves:
    """Loss of the outputs by path of a layer, at each of LEVELS."""

    losses: dict[str, list[float]]
    runs: int  # of the model with a pruned layer that this took; 0: they were kept


def layer_curves(
    technique: OneShotPruning, model: LoadedModel, context: Context, paths: Sequence[str], forms: Forms
) -> LayerCurves:
    """The losses of these layers on calibration data, read where they are kept. The model is as before afterwards.

    Nats of KL divergence of the distributions, or 1 − cosine of vectors. Raises InputError where an activation is not
    finite, RunFailed where the outputs are not.
    """
    store = context.store
    method = type(technique).model_validate({**technique.model_dump(exclude=FREE), "allocation": "sensitivity"})
    if store is None or not context.key:
        return _measured(method, model, context, paths, forms)
    data = context.data.calibration.fingerprint()
    key = digest("layer sensitivity", context.key, data, method.id, method.model_dump(mode="json"), LEVELS, list(paths))
    with store.lock(key):
        if (known := store.record(key)) is None:
            found = _measured(method, model, context, paths, forms)
            with store.writing(key) as folder:
                (folder / RECORD).write_text(json.dumps({"losses": found.losses}))
            return found
    return LayerCurves(known["losses"], runs=0)


# -- measuring -------------------------------------------------------------------------------------


def _measured(
    technique: OneShotPruning, model: LoadedModel, context: Context, paths: Sequence[str], forms: Forms
) -> LayerCurves:
    judge = Judge(model, context)
    blocks, groups = _groups(model, paths)
    reading, judging = Resumed(model, read_batches(model, context), blocks), Resumed(model, judge.batches, blocks)
    methods = [_alone(technique, level, forms) for level in LEVELS]
    losses: dict[str, list[float]] = {}
    with torch.no_grad():
        if not judge.sound:
            _blame(model, reading, [one for _, parts in groups for part in parts.values() for one in part], methods[0])
        for number, parts in groups:
            reading.advance(number)
            judging.advance(number)
            sums = _read(model, reading, [matrix for part in parts.values() for matrix in part], methods[0])
            for path, part in parts.items():
                losses[path] = [_loss_alone(part, sums, method, judge, judging) for method in methods]
                if not np.isfinite(losses[path]).all():
                    raise RunFailed(f"{technique.id}: the outputs are not finite where {path} alone is pruned")
    return LayerCurves({path: losses[path] for path in paths}, len(paths) * len(LEVELS) * len(judge.batches))


def _groups(model: LoadedModel, paths: Sequence[str]) -> tuple[list[nn.Module], list[tuple[int, Parts]]]:
    """The blocks, and what is summed up at once, each with the number of blocks before it.

    Layers of a block together; outside of blocks, and where there are none, one at a time: Hessians take memory.
    """
    blocks: list[nn.Module] = []
    groups: list[tuple[int, Parts]] = []
    inside: set[str] = set()
    if not is_one_block(model):
        place, found = find_blocks(model.module, mixed=True)
        blocks = list(found)
        for number, chosen in sorted(chosen_matrices(model.module, place, paths).items()):
            parts: Parts = {}
            for matrix in chosen:
                parts.setdefault(matrix.path, []).append(matrix)
            groups.append((number, parts))
            inside |= parts.keys()
    outside = [(0, {path: matrices(model.module, path)}) for path in paths if path not in inside]
    return blocks, [*outside, *groups]


def _alone(technique: OneShotPruning, level: float, forms: Forms) -> Method:
    """Pruning at one ratio by what a layer reads before anything is pruned."""
    method = method_for(technique, {}, ratio=lambda path: level, forms=forms)
    return dataclasses.replace(method, before=False, inverse=False)


def _read(model: LoadedModel, reading: Resumed, found: Sequence[Matrix], method: Method) -> Sums:
    owners = [matrix.place.owner for matrix in found]
    whole = Whole(model, [owner for owner in owners if unfolds(owner)])

    def read(sums: Sums) -> None:
        with watched(whole, getattr(model.module, "config", None), sums.see):
            for at, batch in enumerate(reading.batches):
                sums.mask = padding(batch)
                reading.outputs(at)

    return summed(found, method, read)


def _blame(model: LoadedModel, reading: Resumed, found: Sequence[Matrix], method: Method) -> None:
    """Raise InputError naming the first layer that reads what is not finite, RunFailed where none does."""
    sums = _read(model, reading, found, dataclasses.replace(method, products=False))
    for key, inputs in sums.sums.items():
        inputs.check(sums.todo[key].name)
    raise RunFailed("the model's outputs on calibration data are not finite: no loss can be measured")


def _loss_alone(part: Sequence[Matrix], sums: Sums, method: Method, judge: Judge, judging: Resumed) -> float:
    kept = [matrix.read().clone() for matrix in part]
    alone = Sums(part, method)
    alone.sums = {key: sums.sums[key] for key in alone.todo if key in sums.sums}
    try:
        changed_by_sums(alone, in_blocks=False)
        return judge.loss([judging.outputs(at) for at in range(len(judging.batches))])
    finally:
        for matrix, weight in zip(part, kept, strict=True):
            matrix.write(weight)

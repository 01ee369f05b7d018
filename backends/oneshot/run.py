"""One-shot methods on a loaded model: its blocks in order, then the layers that stand outside of them.

A model of convolutions, or one without blocks that repeat, is one block: its layers are changed in the order in which
they are called.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.blocks import find_blocks
from backends.context import Context
from backends.models import LoadedModel
from backends.oneshot.blocks import Entry, enter
from backends.oneshot.engine import Done, changed_by_sums, chosen_matrices, compress
from backends.oneshot.feed import held_bytes, scores_width, windows_at_once
from backends.oneshot.matrices import Matrix, matrices, watched
from backends.oneshot.methods import Method
from backends.oneshot.sums import Sums, summed
from backends.oneshot.unfold import unfolds
from backends.oneshot.whole import Whole
from knowledge.values import InputError


def compress_model(model: LoadedModel, context: Context, paths: Sequence[str], method: Method) -> list[Done]:
    """Change the matrices behind these paths of the layer table, in place, in the order in which they are used.

    Raises InputError where the calibration data are too few, an activation is not finite, or the blocks are not called
    one after the other.
    """
    batches = calibration_batches(model, context, method)
    if is_one_block(model):
        return compress_whole(model, batches, [m for path in paths for m in matrices(model.module, path)], method)
    blocks_path, blocks = find_blocks(model.module, mixed=True)
    inside = chosen_matrices(model.module, blocks_path, paths)
    config = getattr(model.module, "config", None)
    entries = [_entry(model, batch) for batch in batches]
    done = list(compress(list(blocks), entries, inside, method, config))
    known = {one.matrix.path for one in done}
    outside = [m for path in paths if path not in known for m in matrices(model.module, path)]
    if outside:  # a pooler, a projection: one pass more, through the blocks as they are now

        def read(sums: Sums) -> None:
            with torch.no_grad(), watched(model.module, config, sums.see):
                for batch in batches:
                    sums.mask = padding(batch)
                    model.forward(batch)

        done += changed_by_sums(summed(outside, method, read), in_blocks=False)
    return done


def is_one_block(model: LoadedModel) -> bool:
    """Whether the engine sees the model as a whole: blocks of convolutions change the shape of what passes them."""
    if model.info.family == "cnn":
        return True
    try:
        find_blocks(model.module, mixed=True)
    except InputError:
        return True
    return False


def compress_whole(
    model: LoadedModel, batches: Sequence[dict[str, Tensor]], found: Sequence[Matrix], method: Method
) -> list[Done]:
    """Change these matrices in place, in the order in which the model calls their layers.

    A layer behind a pooling reads one vector a sample: there may be fewer of them than a Hessian has rows.
    """
    return changed_as_one(model, batches, found, dataclasses.replace(method, inverse=False))[0]


def changed_as_one(
    model: LoadedModel, batches: Sequence[dict[str, Tensor]], found: Sequence[Matrix], method: Method
) -> tuple[list[Done], list[Tensor]]:
    """The same as the method wants it, and the outputs that the changed model gives for each batch."""
    owners = [m.place.owner for m in found]
    whole = Whole(model, [owner for owner in owners if unfolds(owner)])
    entries = [Entry(next(iter(batch.values())), [((batch,), {})], padding(batch)) for batch in batches]
    done = list(compress([whole], entries, {0: found}, method, getattr(model.module, "config", None)))
    return done, [entry.hidden for entry in entries]


def calibration_batches(model: LoadedModel, context: Context, method: Method) -> list[dict[str, Tensor]]:
    """The calibration data on the model's device, as much at once as memory holds."""
    split, layers = context.data.calibration, context.layers
    length = max(
        (a.shape[1] for a in split.inputs.values() if a.ndim == 2), default=math.prod(layers.info.image_size) or 1
    )
    copies = np.where(layers.kind == "experts", max(layers.info.experts_per_token, 1), 1)  # of what is sent to each
    widest = int((layers.outputs * copies)[layers.kind != "embedding"].max(initial=1))
    rows = layers.positions * (layers.inputs // layers.groups) * layers.kernel  # numbers in a sample's unfolded inputs
    widest = max(widest, int(rows[layers.kind == "conv"].max(initial=0)) // length)
    text = any(a.ndim == 2 for a in split.inputs.values())
    inside = (layers.kind == "linear") & (layers.block >= 0)
    tokens = length if text else int(layers.positions[inside].max(initial=0))
    widest = max(widest, scores_width(layers.info.heads, tokens, length))
    held = held_bytes(model.module.parameters(), int(layers.inputs[inside].max(initial=0)) if method.products else 0)
    size = windows_at_once(len(split), length, widest, method, [model.device], held)
    return [
        {name: torch.from_numpy(array).to(model.device) for name, array in batch.items() if name != "labels"}
        for batch in split.batches(size)
    ]


def _entry(model: LoadedModel, batch: dict[str, Tensor]) -> Entry:
    entry = enter(model.module, lambda: model.forward(batch))
    entry.mask = padding(batch)
    return entry


def padding(batch: dict[str, Any]) -> Tensor | None:
    """False where a token is padding; None where none is. [batch, time]"""
    mask = batch.get("attention_mask")
    return None if mask is None or bool(mask.all()) else mask.bool()

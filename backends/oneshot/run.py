"""One-shot methods on a loaded model: its blocks in order, then the layers that stand outside of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backends.blocks import find_blocks
from backends.context import Context
from backends.models import LoadedModel
from backends.oneshot.blocks import Entry, enter
from backends.oneshot.engine import Done, Sums, changed_by_sums, chosen_matrices, compress
from backends.oneshot.feed import windows_at_once
from backends.oneshot.matrices import matrices, watched
from backends.oneshot.methods import Method


def compress_model(model: LoadedModel, context: Context, paths: Sequence[str], method: Method) -> list[Done]:
    """Change the matrices behind these paths of the layer table, in place, in the order in which they are used.

    Raises InputError where the calibration data are too few, an activation is not finite, or the blocks are not called
    one after the other.
    """
    blocks_path, blocks = find_blocks(model.module)
    inside = chosen_matrices(model.module, blocks_path, paths)
    config = getattr(model.module, "config", None)
    batches = _batches(model, context, method)
    entries = [_entry(model, batch) for batch in batches]
    done = list(compress(list(blocks), entries, inside, method, config))
    known = {one.matrix.path for one in done}
    outside = [m for path in paths if path not in known for m in matrices(model.module, path)]
    if outside:  # a pooler, a projection: one pass more, through the blocks as they are now
        sums = Sums(outside, method)
        with torch.no_grad(), watched(model.module, config, sums.see):
            for batch in batches:
                sums.mask = _mask(batch)
                model.forward(batch)
        done += changed_by_sums(sums, in_blocks=False)
    return done


def _batches(model: LoadedModel, context: Context, method: Method) -> list[dict[str, Tensor]]:
    split, info = context.data.calibration, context.layers.info
    length = max((a.shape[1] for a in split.inputs.values() if a.ndim == 2), default=math.prod(info.image_size) or 1)
    widest = int(context.layers.outputs[context.layers.kind != "embedding"].max(initial=1))
    size = windows_at_once(len(split), length, widest, method)
    return [
        {name: torch.from_numpy(array).to(model.device) for name, array in batch.items() if name != "labels"}
        for batch in split.batches(size)
    ]


def _entry(model: LoadedModel, batch: dict[str, Tensor]) -> Entry:
    entry = enter(model.module, lambda: model.forward(batch))
    entry.mask = _mask(batch)
    return entry


def _mask(batch: dict[str, Any]) -> Tensor | None:
    mask = batch.get("attention_mask")
    return None if mask is None or bool(mask.all()) else mask.bool()

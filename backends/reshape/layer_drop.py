"""Dropping transformer blocks: how much each one changes its input, measured in one pass, and removing the idlest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.blocks import drop_blocks, find_blocks, watching
from backends.context import Context
from backends.data import Split
from backends.models import LoadedModel
from backends.structure import changed
from knowledge.techniques.reshape import LayerDrop
from knowledge.values import Decision, InputError

BATCH = 16
MAX_TOKENS = 65_536  # of calibration data; block influence settles long before


def block_influence(before: Tensor, after: Tensor, mask: Tensor | None = None) -> tuple[float, int]:
    """Sum over unmasked tokens of 1 − cosine(input, output), and the number of tokens (arXiv:2403.03853, equation 1).

    before, after: [batch, time, hidden]; mask: [batch, time].
    """
    distance = 1 - F.cosine_similarity(before.double(), after.double(), dim=-1)
    if mask is not None and mask.shape == distance.shape:
        distance = distance[mask.bool()]
    return float(distance.sum()), distance.numel()


def measure(model: LoadedModel, split: Split) -> list[float]:
    """Block influence of every block, from one forward pass over the split. Raises InputError when it is empty."""
    if len(split) == 0:
        raise InputError("calibration-data", "", "no samples", "give at least one")
    _, blocks = find_blocks(model.module)
    sums, tokens, mask = [0.0] * len(blocks), [0] * len(blocks), None

    def see(index: int, before: Tensor, after: Tensor) -> None:
        total, count = block_influence(before, after, mask)
        sums[index] += total
        tokens[index] += count

    was_training = model.module.training
    model.module.eval()
    with torch.no_grad(), watching(blocks, see):
        for arrays in split.batches(BATCH):
            batch = _tensors(arrays, model.device)
            mask = batch.get("attention_mask")
            model.forward(batch)
            if tokens[0] >= MAX_TOKENS:
                break
    model.module.train(was_training)
    return [total / max(count, 1) for total, count in zip(sums, tokens, strict=True)]


def apply(technique: LayerDrop, model: LoadedModel, context: Context) -> tuple[LoadedModel, Decision]:
    """Remove the blocks with the lowest influence, in place. The decision names them by their old indices."""
    influence = measure(model, context.data.calibration)
    order = sorted(range(len(influence)), key=lambda block: (influence[block], block))
    gone = tuple(sorted(order[: technique.dropped(len(influence))]))
    drop_blocks(model.module, gone)
    decision = Decision(technique=technique.id, dropped_blocks=gone)
    return changed(model, decision), decision


def _tensors(arrays: Mapping[str, object], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.as_tensor(values, device=device) for name, values in arrays.items() if name != "labels"}

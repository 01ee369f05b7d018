"""Which weights of a matrix stay, by a score for each. Tensors only; a larger score is worth more."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_in_rows(scores: Tensor, ratio: float) -> Tensor:
    """True for the weights that stay: every row loses the ⌊ratio · in⌋ lowest of its own. scores: [out, in]

    >>> kept_in_rows(torch.tensor([[3.0, 1.0, 2.0, 4.0]]), 0.5).tolist()
    [[True, False, False, True]]
    """
    kept = torch.ones_like(scores, dtype=torch.bool)
    lost = int(ratio * scores.shape[1] + 1e-9)
    if lost:
        lowest = torch.topk(scores, lost, dim=1, largest=False, sorted=False).indices
        kept.scatter_(1, lowest, False)
    return kept


def kept_in_groups(scores: Tensor, kept: int, among: int) -> Tensor:
    """True for the weights that stay: of every `among` neighbors in a row the `kept` highest. scores: [..., in]

    Raises ValueError where the row does not divide into groups.

    >>> kept_in_groups(torch.tensor([[3.0, 1.0, 2.0, 4.0]]), 2, 4).tolist()
    [[True, False, False, True]]
    """
    if scores.shape[-1] % among:
        raise ValueError(f"rows of {scores.shape[-1]} do not divide into groups of {among}")
    groups = scores.reshape(*scores.shape[:-1], -1, among)
    highest = torch.topk(groups, kept, dim=-1, sorted=False).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, highest, True).flatten(-2)

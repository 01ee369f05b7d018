"""Which weights of a matrix stay, by a score for each. Tensors only; a larger score is worth more."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_in_rows(scores: Tensor, ratio: float, exact: bool = False) -> Tensor:
    """True for the weights that stay: every row loses the ⌊ratio · in⌋ lowest of its own. scores: [out, in]

    With `exact`, as many rows lose one more, those whose next score is lowest, as make `ratio` of the whole matrix.

    >>> kept_in_rows(torch.tensor([[3.0, 1.0, 2.0, 4.0]]), 0.5).tolist()
    [[True, False, False, True]]
    >>> kept_in_rows(torch.tensor([[3.0, 1.0, 5.0], [2.0, 1.0, 4.0]]), 0.5, exact=True).tolist()
    [[True, False, True], [False, False, True]]
    """
    outputs, inputs = scores.shape
    kept = torch.ones_like(scores, dtype=torch.bool)
    total = round(ratio * scores.numel())
    lost = total // outputs if exact else int(ratio * inputs + 1e-9)
    more = total - lost * outputs if exact else 0
    if lost or more:
        lowest = torch.topk(scores, lost + (more > 0), dim=1, largest=False, sorted=more > 0)
        kept.scatter_(1, lowest.indices[:, :lost], False)
        if more:
            rows = torch.topk(lowest.values[:, lost], more, largest=False).indices
            kept[rows, lowest.indices[rows, lost]] = False
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

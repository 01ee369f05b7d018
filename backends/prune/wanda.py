"""Wanda: weights by their size times the norm of what they read (arXiv:2306.11695, section 3). Tensors only."""

from __future__ import annotations

from torch import Tensor

from backends.prune.masks import kept_in_groups, kept_in_rows


def wanda(
    weight: Tensor, norms: Tensor, ratio: float, pattern: tuple[int, int] = (0, 0), exact: bool = False
) -> Tensor:
    """The matrix with its lowest |w| · ‖x‖ set to zero. weight: [out, in]  norms: [in], of each input over all tokens

    Weights are compared within their own row: `ratio` of each goes, or all but N of M neighbors with a pattern (N, M).
    What `exact` does to rows that do not divide is said at `kept_in_rows`.
    """
    scores = weight.abs() * norms
    kept = kept_in_groups(scores, *pattern) if pattern[1] else kept_in_rows(scores, ratio, exact)
    return weight * kept

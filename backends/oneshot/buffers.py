"""Buffers that no file holds: made empty in a way that tells whether they have been computed since."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unknown(buffer: Tensor, device: torch.device) -> Tensor:
    """A buffer of the same shape without its numbers: NaN, or the least integer."""
    return torch.full_like(buffer, _fill(buffer), device=device)


def is_unknown(buffer: Tensor) -> bool:
    """Whether nothing has filled an `unknown` buffer; of truth values that cannot be told, and counts as no.

    >>> is_unknown(unknown(torch.zeros(2), torch.device("cpu"))), is_unknown(torch.zeros(2))
    (True, False)
    """
    if buffer.dtype == torch.bool or not buffer.numel():
        return False
    fill = _fill(buffer)
    return bool((buffer.isnan() if math.isnan(fill) else buffer == fill).all())


def _fill(buffer: Tensor) -> float | int | bool:
    if buffer.dtype == torch.bool:
        return False
    return math.nan if buffer.is_floating_point() or buffer.is_complex() else torch.iinfo(buffer.dtype).min

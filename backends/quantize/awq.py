"""AWQ: channels with large activations scaled up before rounding, and ranges clipped (arXiv:2306.00978). Tensors only.

Both searches minimize ‖(W − Ŵ)·X‖² = tr((W − Ŵ)·M·(W − Ŵ)ᵀ) with the second moment M = mean of x·xᵀ, which gives the
same number as running the layers again on all calibration tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backends.quantize.grid import dequantize, encode, grid, group_width, on_grid, quantize

SMALLEST = 1e-4  # of a channel's factor before it is normalized, as the authors' code has it
CLIPS = tuple(1 - 0.05 * step for step in range(10))  # shares of a group's range that are tried


def channel_factors(
    weights: Sequence[Tensor],
    second_moment: Tensor,
    bits: int,
    group_size: int,
    symmetric: bool,
    steps: int,
    worth: float = 1.0,
) -> Tensor:
    """The factor of each input channel [in] with which the layers lose least by rounding; ones where none helps.

    weights: [out, in] of the layers that read one x, as q, k and v do: they share factors. second_moment: [in, in].
    Factors are powers of the channels' activations, `steps` exponents from 0 to below 1, normalized by the middle of
    their range (section 3.2, equation 5). Activations are root mean squares here, in the paper means of magnitudes.
    Ones stay unless the loss falls below `worth` of what they lose.
    """
    size = second_moment.diagonal().clamp(min=0).sqrt()
    best, lowest = torch.ones_like(size), torch.inf
    for step in range(steps):
        factors = (size ** (step / steps)).clamp(min=SMALLEST)
        factors = factors / (factors.max() * factors.min()).sqrt()
        rounded = (
            dequantize(*quantize(w * factors, bits, group_size, symmetric), group_size) / factors for w in weights
        )
        errors = [w - near for w, near in zip(weights, rounded, strict=True)]
        loss = sum(float((error @ second_moment * error).sum()) for error in errors)
        if loss < lowest:
            best, lowest = factors, loss if step else loss * worth
    return best


def clipped_ranges(
    weight: Tensor, second_moment: Tensor, bits: int, group_size: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Scales and zero points [out, groups] with every group's range cut to the share that loses least.

    weight: [out, in]  second_moment: [in, in]. Groups of a row are decided from left to right, each knowing the errors
    of those before; the authors' code looks at each alone, where errors that add up go unseen (at 2 bits in groups of
    64 it loses more on both embedded models: python -m benchmarks.order).
    """
    size = group_width(weight.shape[1], group_size)
    before = torch.zeros_like(weight)  # errors so far, seen from every column: E·M
    scales, zeros = [], []
    for start in range(0, weight.shape[1], size):
        columns = slice(start, start + size)
        w, own = weight[:, columns], second_moment[columns, columns]
        lowest = w.new_full((len(w),), torch.inf)
        kept = [torch.empty_like(lowest), torch.empty_like(lowest), torch.empty_like(w)]
        for share in CLIPS:
            scale, zero = grid(w * share, bits, symmetric)
            error = w - on_grid(w, scale[:, None], zero[:, None], bits)
            loss = (error @ own * error + 2 * error * before[:, columns]).sum(1)
            better = loss < lowest
            lowest = torch.where(better, loss, lowest)
            kept = [
                torch.where(better if old.dim() == 1 else better[:, None], new, old)
                for old, new in zip(kept, (scale, zero, error), strict=True)
            ]
        scales.append(kept[0])
        zeros.append(kept[1])
        before += kept[2] @ second_moment[columns]
    return torch.stack(scales, 1), torch.stack(zeros, 1)


def awq(
    weight: Tensor, factors: Tensor, second_moment: Tensor, bits: int, group_size: int, symmetric: bool, clip: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Ŵ [out, in], and the scales and zero points [out, groups] of w · factors; Ŵ is divided by them again."""
    scaled = weight * factors
    if clip:
        moment = second_moment / factors / factors[:, None]  # of x / factors
        scales, zeros = clipped_ranges(scaled, moment, bits, group_size, symmetric)
        codes = encode(scaled, scales, zeros, bits, group_size)
    else:
        codes, scales, zeros = quantize(scaled, bits, group_size, symmetric)
    return dequantize(codes, scales, zeros, group_size) / factors, scales, zeros

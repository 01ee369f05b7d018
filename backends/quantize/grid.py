"""Weights on a grid of few values, a scale for each group of a row: tensors in, tensors out.

    w [out, in]  ─ quantize ─►  codes uint8 [out, in]    scales [out, groups]    zeros uint8 [out, groups]
                                w ≈ (codes − zeros) · scales, each group of `group_size` columns with its own

A group size of None or ≤ 0 makes one group of each row. The last group of a row may have fewer columns than the others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

# the quantiles of a normal distribution that arXiv:2305.14314, appendix E, lists; code 7 is 0
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

# -- evenly spaced values --------------------------------------------------------------------------


def grid(weights: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point [rows] for one group [rows, columns] of weights.

    Asymmetric: from the lowest to the highest weight, 0 among the values (as the code of arXiv:2210.17323 does).
    Symmetric: the zero point is the middle code, and the largest weight, whatever its sign, takes the lowest one, which
    lies one step further out than the highest: scales may be negative. A scale of 2·max/(2^bits − 1) loses more: its
    outermost value lies beyond every weight (tests/backends/quantize/test_grid.py compares the two).
    """
    lowest, highest = weights.amin(dim=1).clamp(max=0), weights.amax(dim=1).clamp(min=0)
    if symmetric:
        middle = 2 ** (bits - 1)
        scale = torch.where(highest > -lowest, highest, lowest) / -middle
        return _nonzero(scale), torch.full_like(scale, middle)
    scale = _nonzero((highest - lowest) / (2**bits - 1))
    return scale, torch.round(-lowest / scale).clamp(0, 2**bits - 1)


def on_grid(weights: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest numbers on a grid of the same shape, or of one that spreads to it."""
    return (weights / scale).round_().add_(zero).clamp_(0, 2**bits - 1).sub_(zero).mul_(scale)


def _nonzero(scale: Tensor) -> Tensor:
    """1 for a group of zeros, or of numbers too small for a normal scale: its codes become zero points."""
    return torch.where(scale.abs() < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)


def quantize(
    weight: Tensor, bits: int, group_size: int | None, symmetric: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Round to nearest: codes [out, in], scales and zero points [out, groups] of a weight [out, in]."""
    weight = weight if weight.dtype == torch.float64 else weight.float()
    grouped = _grouped(weight, group_size)  # zeros that fill a group up change no range, since 0 is in all of them
    scales, zeros = grid(grouped.flatten(0, 1), bits, symmetric)
    scales, zeros = scales.view(grouped.shape[:2]).float(), zeros.view(grouped.shape[:2]).to(torch.uint8)
    return encode(weight, scales, zeros, bits, group_size), scales, zeros


def encode(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int, group_size: int | None) -> Tensor:
    """The nearest codes [out, in] on a given grid; exact for weights that lie on it."""
    steps = torch.round(weight / per_column(scales, weight.shape[1], group_size))
    zero = per_column(zeros, weight.shape[1], group_size).to(steps.dtype)
    return (steps + zero).clamp(0, 2**bits - 1).to(torch.uint8)


def dequantize(codes: Tensor, scales: Tensor, zeros: Tensor, group_size: int | None) -> Tensor:
    """The numbers [out, in] that codes stand for, in the type of the scales."""
    columns = codes.shape[1]
    steps = codes.to(scales.dtype) - per_column(zeros, columns, group_size).to(scales.dtype)
    return steps * per_column(scales, columns, group_size)


def group_width(columns: int, group_size: int | None) -> int:
    """Columns of a whole group: all of them where `group_size` is None or ≤ 0."""
    return columns if group_size is None or group_size <= 0 else group_size


def per_column(values: Tensor, columns: int, group_size: int | None) -> Tensor:
    """Values of groups [out, groups] repeated for each of the `columns`: [out, columns].

    Raises ValueError where there are not as many groups as columns need.
    """
    size = group_width(columns, group_size)
    if values.shape[1] != -(-columns // size):
        raise ValueError(f"{values.shape[1]} groups of {size} for {columns} columns")
    return values.repeat_interleave(size, dim=1)[:, :columns]


def _grouped(weight: Tensor, group_size: int | None) -> Tensor:
    """[out, in] as [out, groups, size], the last group filled up with zeros."""
    size = group_width(weight.shape[1], group_size)
    return pad(weight, (0, -weight.shape[1] % size)).reshape(len(weight), -1, size)


# -- values that suit a normal distribution --------------------------------------------------------


def quantize_nf4(weight: Tensor, group_size: int | None) -> tuple[Tensor, Tensor]:
    """Codes [out, in] of the nearest NF4 values, and the largest magnitude [out, groups] of each group."""
    weight = weight.float()
    largest = _nonzero(_grouped(weight, group_size).abs().amax(dim=2))
    values = torch.tensor(NF4, device=weight.device)
    between = (values[1:] + values[:-1]) / 2
    share = (weight / per_column(largest, weight.shape[1], group_size)).contiguous()
    return torch.bucketize(share, between).to(torch.uint8), largest


def dequantize_nf4(codes: Tensor, largest: Tensor, group_size: int | None) -> Tensor:
    """The numbers [out, in] that NF4 codes stand for."""
    values = torch.tensor(NF4, device=codes.device)
    return values[codes.long()] * per_column(largest, codes.shape[1], group_size)


# -- bytes -----------------------------------------------------------------------------------------


def container_bits(bits: int) -> int:
    """Bits that one code takes in a file: no kernel reads 3, which take 4."""
    return 4 if bits == 3 else bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., n] of 2, 4 or 8 bits as bytes [..., ⌈n · bits / 8⌉], the first in the lowest bits; 0 fills up.

    >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist(), pack(torch.tensor([1, 2, 3]), 2).tolist()
    ([33, 3], [57])
    """
    each = 8 // bits
    codes = pad(codes.to(torch.uint8), (0, -codes.shape[-1] % each)).reshape(*codes.shape[:-1], -1, each)
    packed = torch.zeros_like(codes[..., 0])
    for place in range(each):
        packed |= codes[..., place] << (bits * place)
    return packed


def pack_blocks(codes: Tensor, bits: int, group_size: int) -> Tensor:
    """Codes [out, in] as MatMulNBits reads them: [out, blocks, group_size · bits / 8], the last block filled up."""
    return pack(_grouped(codes, group_size), bits)


def pack_high_first(codes: Tensor) -> Tensor:
    """4-bit codes [out, in] as MatMulBnb4 reads them: one row of bytes, the first of two codes in the higher half.

    >>> pack_high_first(torch.tensor([[1, 2], [3, 4]])).tolist()
    [18, 52]
    """
    pairs = codes.to(torch.uint8).reshape(-1, 2)
    return pairs[:, 0] * 16 + pairs[:, 1]


def centered(codes: Tensor, bits: int, container: int) -> Tensor:
    """Codes around the middle of `bits` moved to the middle of a wider container: what a kernel without zero points
    takes for 0."""
    return codes.add(2 ** (container - 1) - 2 ** (bits - 1))

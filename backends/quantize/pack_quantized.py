"""Rounded weights in the form `pack-quantized` of compressed-tensors, which transformers and vLLM load.

w [out, in]    weight_packed      int32 [out, ⌈in · bits / 32⌉]      codes of a row, the first in the lowest bits
               weight_scale       float [out, groups]                in the numbers of the model's file
               weight_zero_point  int32 [⌈out · bits / 32⌉, groups]  of all rows, likewise; none where symmetric
               weight_shape       int64 [2]

    w = (code − zero) · scale    symmetric: zero is the middle code

The layout is that of `PackedQuantizationCompressor` (https://github.com/vllm-project/compressed-tensors). Its groups
divide a row. It packs 3 bits too, in other ways in other versions: they are stored in 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from backends.quantize.grid import centered, container_bits, dequantize, encode, group_width
from backends.quantize.grid import pack as pack_bytes
from knowledge.values import Value

FORMAT = "pack-quantized"
SMALLEST_GROUP = 16  # of columns: scales of smaller ones would take more than the weights
AT_ONCE = 2**22  # weights that are encoded together
PACKED, SCALE, ZEROS, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"


class Scheme(Value):
    """How the matrices of a model are packed."""

    bits: int  # of a code in the file
    group_size: int  # columns that share a scale; 0: the whole row
    symmetric: bool

    def holds(self, inputs: int, group_size: int) -> bool:
        """Whether rows of so many inputs in groups of `group_size` can be told in groups of this scheme."""
        own = _own_group(inputs, group_size)
        return own % self.group_size == 0 if self.group_size else own == inputs


def common_scheme(
    bits: int, group_size: int, symmetric: bool, weights: Mapping[int, int], float_bits: int
) -> Scheme | None:
    """The scheme with which a model takes the least room; None where none holds any of its layers.

    `weights`: how many there are in rows of each width. Readers take one scheme for all layers, and its groups divide a
    row: where a short last group or a narrow layer wants smaller ones, several have the same scale. Layers that would
    make all groups too small stay in floats of `float_bits`.

    >>> common_scheme(4, 128, False, {4096: 10**6, 4544: 10**6}, 16), common_scheme(3, 128, True, {64: 4096}, 32)
    (Scheme(bits=4, group_size=64, symmetric=False), Scheme(bits=4, group_size=0, symmetric=True))
    >>> common_scheme(4, 32, False, {64: 4096, 90: 100}, 32), common_scheme(4, 32, False, {90: 100}, 32)
    (Scheme(bits=4, group_size=32, symmetric=False), None)
    """
    container = container_bits(bits)
    if all(_own_group(width, group_size) == width for width in weights):
        return Scheme(bits=container, group_size=0, symmetric=symmetric)
    sizes = {_own_group(width, group_size) for width in weights}
    while more := {math.gcd(a, b) for a in sizes for b in sizes} - sizes:
        sizes |= more
    schemes = [Scheme(bits=container, group_size=size, symmetric=symmetric) for size in sizes if size >= SMALLEST_GROUP]

    def room(scheme: Scheme) -> tuple[float, int]:
        each = container + (float_bits + (0 if symmetric else container)) / scheme.group_size
        bits = (count * (each if scheme.holds(w, group_size) else float_bits) for w, count in weights.items())
        return sum(bits), -scheme.group_size

    return min(schemes, key=room, default=None)


def _own_group(inputs: int, group_size: int) -> int:
    """The largest size of groups that divide a row and no group of `group_size`; the row where it is one group."""
    size = group_width(inputs, group_size)
    return inputs if size >= inputs else math.gcd(size, inputs)


def quantization_config(scheme: Scheme, ignore: list[str]) -> dict[str, Any]:
    """What config.json says of a model whose dense layers are packed, all but those that are named.

    Where there are zero points, transformers must make floats of them on loading: as of 5.23, with compressed-tensors
    0.20, what it builds for packed weights with zero points does not take them.
    """
    strategy = {"strategy": "group", "group_size": scheme.group_size}
    whole = {"strategy": "channel", "group_size": None}
    numbers = {"num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric, "dynamic": False}
    group = {
        "targets": ["Linear"],
        "weights": numbers | (strategy if scheme.group_size else whole),
        "input_activations": None,
        "output_activations": None,
        "format": FORMAT,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    } | ({} if scheme.symmetric else {"dequantize": True})


def packed(
    weight: Tensor, scales: Tensor, zeros: Tensor, bits: int, group_size: int, scheme: Scheme
) -> dict[str, Tensor]:
    """A weight [out, in] that lies on a grid of `bits`, by the names that its parts have in a file.

    scales, zeros: [out, groups] of `group_size` columns.
    """
    rows, inputs = weight.shape
    words = []
    for start in range(0, rows, max(AT_ONCE // inputs, 1)):
        these = slice(start, start + max(AT_ONCE // inputs, 1))
        codes = encode(weight[these], scales[these], zeros[these], bits, group_size)
        words.append(_words(centered(codes, bits, scheme.bits) if scheme.symmetric else codes, scheme.bits))
    groups = inputs // scheme.group_size if scheme.group_size else 1
    repeated = min(group_width(inputs, group_size), inputs) * groups // inputs
    parts = {
        PACKED: torch.cat(words),
        SCALE: scales.repeat_interleave(repeated, dim=1)[:, :groups],
        SHAPE: torch.tensor([rows, inputs]),
    }
    if not scheme.symmetric:
        points = zeros.repeat_interleave(repeated, dim=1)[:, :groups]
        parts[ZEROS] = _words(points.to(torch.uint8).t(), scheme.bits).t()
    return parts


def unpacked(parts: Mapping[str, Tensor], scheme: Scheme) -> Tensor:
    """The weight [out, in] that `packed` took apart, in its scales' numbers; raises ValueError for wrong shapes."""
    rows, inputs = (int(n) for n in parts[SHAPE])
    groups = inputs // scheme.group_size if scheme.group_size else 1
    scales = parts[SCALE]
    if scales.shape != (rows, groups):
        raise ValueError(f"has scales of shape {list(scales.shape)}, {[rows, groups]} belong to its weight")
    middle = torch.full(scales.shape, 2 ** (scheme.bits - 1), dtype=torch.uint8)
    zeros = middle if scheme.symmetric else _codes(parts[ZEROS].t(), scheme.bits, rows).t()
    codes = _codes(parts[PACKED], scheme.bits, inputs)
    if codes.shape != (rows, inputs) or zeros.shape != scales.shape:
        raise ValueError("has fewer codes than its shape needs")
    return dequantize(codes, scales.float(), zeros, scheme.group_size).to(scales.dtype)


def _words(codes: Tensor, bits: int) -> Tensor:
    """Codes [rows, n] as int32 [rows, ⌈n · bits / 32⌉], the first in the lowest bits; 0 fills up.

    >>> _words(torch.tensor([[1, 2, 15]], dtype=torch.uint8), 4).tolist()
    [[3873]]
    """
    data = pack_bytes(codes, bits)
    return pad(data, (0, -data.shape[1] % 4)).contiguous().view(torch.int32)


def _codes(words: Tensor, bits: int, count: int) -> Tensor:
    """The codes [rows, count] of words [rows, …]."""
    data = words.contiguous().view(torch.uint8)
    each = [data >> bits * place & 2**bits - 1 for place in range(8 // bits)]
    return torch.stack(each, dim=-1).flatten(1)[:, :count]

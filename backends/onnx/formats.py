"""How each layer of a finished file is stored, read from the file itself: what a Decision reports of a GRAPH stage.

Tensors are called by the paths of their layers ("encoder.0.weight", "encoder.0.weight_scale", "encoder.0.bias", …), so
the bytes of each row of a LayerTable are the bytes of the tensors below its path.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from knowledge.layers import LayerTable
from knowledge.values import LayerFormat

SUFFIXES = ("_scale", "_zero", "_smooth")
RECURRENT_BIAS = re.compile(r"(.+)\.bias_l(\d+)")


@dataclass
class Bits:
    """Stored bits of one layer by purpose."""

    weight: int = 0
    scale: int = 0
    bias: int = 0
    narrow: bool = False  # stored in fewer than 32 bits


def layer_formats(model: ir.Model, layers: LayerTable) -> dict[str, LayerFormat]:
    """Formats of the rows whose numbers are no longer 32-bit floats, so that the table's bytes equal the file's."""
    rows = {path: i for i, path in enumerate(layers.path)}
    stored: dict[str, Bits] = defaultdict(Bits)
    for name, value in model.graph.initializers.items():
        paths = owners(name, rows)
        if (tensor := value.const_value) is not None:
            for path in paths:
                _count(stored[path], name, tensor, len(paths))
    found = {path: _format(layers, rows[path], bits) for path, bits in stored.items() if bits.narrow}
    for path, i in rows.items():  # a tied row is stored as its owner is
        if layers.tied_to[i] in found and path not in found:
            found[path] = found[layers.tied_to[i]]
    return dict(sorted(found.items()))


def owners(tensor: str, rows: Mapping[str, int]) -> tuple[str, ...]:
    """Rows that a tensor belongs to: the longest path above its name, and the reverse direction stored with it.

    >>> owners("fc.weight_scale", {"fc": 0}), owners("l.weight_ih_l0_scale", {"l.weight_ih_l0": 0})
    (('fc',), ('l.weight_ih_l0',))
    """
    path = tensor
    for suffix in SUFFIXES:
        path = path.removesuffix(suffix)
    if found := RECURRENT_BIAS.fullmatch(path):  # one bias in the file for the input's and the hidden state's
        paths = [f"{found[1]}.weight_{side}_l{found[2]}{way}" for side in ("ih", "hh") for way in ("", "_reverse")]
        return tuple(p for p in paths if p in rows)
    while path and path not in rows:
        path = path.rpartition(".")[0]
    return tuple(p for p in (path, f"{path}_reverse") if p in rows)


def _count(bits: Bits, name: str, tensor: ir.TensorProtocol, sharers: int) -> None:
    total = tensor.nbytes * 8 // sharers
    last = name.rpartition(".")[2]
    if last.startswith("bias"):
        bits.bias += total
    elif last.endswith(SUFFIXES):
        bits.scale += total
    else:
        bits.weight += total
    bits.narrow |= tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def _format(layers: LayerTable, row: int, bits: Bits) -> LayerFormat:
    """Columns whose product with the row's counts gives the stored bits."""
    weights, others = int(layers.weights[row]), int(layers.bias[row] + layers.buffers[row])
    width = max(1, round(bits.weight / max(weights, 1)))
    bias = round(bits.bias / others) if others and bits.bias else int(layers.bias_bits[row])
    if not bits.scale:
        return LayerFormat(bits=width, bias_bits=bias)
    channels = int(layers.copies[row] * (layers.outputs[row] + layers.rank[row]))
    if bits.scale >= 32 * channels or layers.rank[row]:
        return LayerFormat(bits=width, scale_bits=round(bits.scale / channels), bias_bits=bias)
    copies = int(layers.copies[row])
    return LayerFormat(bits=width, group_size=-1, scale_bits=round(bits.scale / copies), bias_bits=bias)

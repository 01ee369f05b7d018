"""Tensors that a graph stores: finding them behind what reads them, and which operator reads what where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from backends.onnx import graph as graphs

NORMS = {
    "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization", "SkipLayerNormalization", "GroupNorm",
    "SkipSimplifiedLayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization",
}  # fmt: skip
CONVS = {"Conv": (1, 2), "FusedConv": (1, 2), "ConvInteger": (1, None), "QLinearConv": (3, 8), "ConvTranspose": (1, 2)}
DENSE = {
    "MatMul": (1, None), "Gemm": (1, 2), "FusedMatMul": (1, None), "FusedGemm": (1, 2), "MatMulInteger": (1, None),
    "MatMulIntegerToFloat": (1, 6), "DynamicQuantizeMatMul": (1, 4), "QGemm": (3, 6), "QLinearMatMul": (3, None),
}  # fmt: skip
GROUPED = {"MatMulNBits", "MatMulBnb4"}  # products with weights in groups of a row
RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
PASSED_THROUGH = {"Transpose", "Cast", "Identity", "Reshape", "DequantizeLinear", "Squeeze", "Unsqueeze"}
FOLLOWED = {"Cast", "Mul", "Identity"}  # between a MatMul and the addition of its bias
QUANTIZED = ("_quantized", "_Q2", "_Q4", "_Q8", "_DQ_Q4", "_DQ_Q8")  # what quantizers add to names


@dataclass
class Stored:
    """A tensor behind a value: through transpositions, casts and dequantization."""

    value: ir.Value
    turned: bool = False
    scale: ir.Value | None = None
    zero: ir.Value | None = None

    @property
    def name(self) -> str:
        return self.value.name or ""

    @property
    def tensor(self) -> ir.TensorProtocol:
        assert self.value.const_value is not None
        return self.value.const_value

    @property
    def sizes(self) -> tuple[int, ...]:
        sizes = tuple(self.tensor.shape.numpy())
        return sizes[:-2] + sizes[:-3:-1] if self.turned and len(sizes) > 1 else sizes


def stored(value: ir.Value | None) -> Stored | None:
    """The initializer behind a value; None where it is computed from the inputs."""
    found: dict[str, Any] = {}
    turned = False
    while value is not None and not value.is_initializer():
        node = value.producer()
        if node is None or node.op_type not in PASSED_THROUGH:
            return None
        turned ^= node.op_type == "Transpose"
        if node.op_type == "DequantizeLinear":
            found = {"scale": node.inputs[1], "zero": node.inputs[2] if len(node.inputs) > 2 else None}
        value = node.inputs[0]
    return None if value is None or value.const_value is None else Stored(value, turned, **found)


def grouped_sizes(node: ir.Node) -> tuple[int, int] | None:
    """[outputs, inputs] of the matrix that a product or a lookup in groups reads packed; None for other nodes.

    Lookups say only how many bytes a row has: of tables in bytes, one holds 8 / bits numbers.
    """
    if node.op_type in GROUPED:
        return int(graphs.attribute(node, "N", 0)), int(graphs.attribute(node, "K", 0))
    table = stored(node.inputs[0]) if node.op_type == "GatherBlockQuantized" else None
    if table is None or len(table.sizes) != 2:
        return None
    entries, width = table.sizes
    each = 8 // int(graphs.attribute(node, "bits", 4)) if table.tensor.dtype == ir.DataType.UINT8 else 1
    return entries, width * each


def layer_path(name: str) -> str:
    """Path of the layer that a tensor is the weight of, by its name, whatever quantizers added to it.

    >>> layer_path("layers.0.mlp.up_proj.weight_Q4"), layer_path("fc.weight_quantized"), layer_path("l.weight_ih_l0")
    ('layers.0.mlp.up_proj', 'fc', 'l.weight_ih_l0')
    """
    for suffix in QUANTIZED:
        name = name.removesuffix(suffix)
    return name.removesuffix(".weight")

"""Dense layers in a graph: where they are, and how their weights become 8-bit integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from backends.onnx import graph as graphs

WEIGHT = ".weight"


@dataclass
class Dense:
    """A MatMul or Gemm with a stored weight."""

    node: ir.Node
    x: ir.Value  # [..., inputs]
    stored: ir.Value  # the initializer that holds the weight
    turned: bool  # the initializer is [outputs, inputs]
    bias: ir.Value | None  # Gemm's own

    @property
    def weight(self) -> np.ndarray:
        """[inputs, outputs]."""
        array = graphs.stored(self.stored)
        return array.T if self.turned else array

    @property
    def name(self) -> str:
        return graphs.name_of(self.stored)


def dense_layers(graph: ir.Graph) -> list[Dense]:
    """Every MatMul and plain Gemm whose right side is a stored float matrix, in graph order."""
    found = []
    for node in graph:
        if node.domain != "" or node.op_type not in ("MatMul", "Gemm") or node.inputs[0] is None:
            continue
        stored, turned = stored_matrix(node.inputs[1])
        if stored is None or graphs.constant(node.inputs[0]) is not None:
            continue
        if node.op_type == "Gemm":
            plain = all(graphs.attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
            if not plain or graphs.attribute(node, "transA", 0):
                continue
            turned ^= bool(graphs.attribute(node, "transB", 0))
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        found.append(Dense(node, node.inputs[0], stored, turned, bias))
    return found


def stored_matrix(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """The float matrix behind a value, and whether it is read transposed; None for anything else."""
    turned = False
    if value is not None and (node := value.producer()) is not None and node.op_type == "Transpose":
        value, turned = node.inputs[0], True
    if value is None or not value.is_initializer() or value.const_value is None:
        return None, False
    tensor = value.const_value
    return (value, turned) if tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2 else (None, False)


def symmetric(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights as int8 with one scale per index of `axis`: w ≈ q · scale.

    >>> q, scale = symmetric(np.array([[1.0, -2.0], [0.5, 4.0]], np.float32), axis=1)
    >>> q.tolist(), scale.tolist()
    ([[127, -64], [64, 127]], [0.007874015718698502, 0.031496062874794006])
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
    q = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    return q, scale.reshape(-1)


def sibling(name: str, suffix: str) -> str:
    """Name of a tensor that belongs to the weight `name`.

    >>> sibling("encoder.0.weight", "scale")
    'encoder.0.weight_scale'
    """
    return f"{name}_{suffix}"

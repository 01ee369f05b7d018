"""Inputs of dense layers divided by a factor for each channel, where weights were multiplied by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx.dense import Dense, sibling


def divide_input(x: ir.Value, group: Sequence[Dense], factors: np.ndarray) -> None:
    """Let the layers of a group, which all read x, read x / factors, in place. factors: [inputs]

    Free where the division folds into the norm that makes x; one multiplication on their branch elsewhere.
    """
    if vectors := foldable(x, group):
        for vector in vectors:
            vector.const_value = ir.tensor((graphs.stored(vector) / factors).astype(np.float32), name=vector.name)
    else:
        _multiply_on_branch(x, group, factors)


def foldable(x: ir.Value, group: Sequence[Dense]) -> list[ir.Value]:
    """Scale and bias of the norm that makes x, where nothing else reads x; empty where there is no such norm."""
    if {n for n, _ in x.uses()} != {layer.node for layer in group} or x.is_graph_output():
        return []
    node = x.producer()
    while node is not None and node.op_type == "Reshape":  # [batch, time, width] -> [batch · time, width]
        before = graphs.input_of(node, 0)
        node = before.producer() if graphs.only_user(before) is node else None
    if node is None or node.op_type not in ("LayerNormalization", "Mul"):
        return []
    vectors = [v for v in node.inputs if v is not None and v.is_initializer()]
    wanted = len(node.inputs) - 1 if node.op_type == "LayerNormalization" else 1
    width = group[0].weight.shape[0]
    return vectors if len(vectors) == wanted and all(_own_vector(v, width) for v in vectors) else []


def _own_vector(value: ir.Value, size: int) -> bool:
    array = graphs.constant(value)
    return array is not None and value.is_initializer() and array.shape == (size,) and len(value.uses()) == 1


def _multiply_on_branch(x: ir.Value, group: Sequence[Dense], factors: np.ndarray) -> None:
    graph = graphs.graph_of(group[0].node)
    inverse = graphs.add_constant(graph, sibling(group[0].name, "smooth"), (1 / factors).astype(np.float32))
    first = min((layer.node for layer in group), key=graph.index)
    scaled = graphs.add_before(first, "Mul", [x, inverse], like=x)[0]
    for layer in group:
        layer.node.replace_input_with(0, scaled)
        layer.x = scaled

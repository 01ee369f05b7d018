"""Moving outliers from activations into weights before quantization. arXiv:2211.10438 (SmoothQuant).

x · W = (x / s) · (s · W) for any positive s per input channel. With s between the channel's activation and weight
ranges the activations of all channels span one range, and one 8-bit scale serves them. The division costs nothing where
it folds into the layer norm (or RMS norm weight) before; elsewhere it is one multiplication on the branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx.dense import Dense, sibling
from backends.onnx.observe import largest_per_channel, observe
from backends.onnx.session import Batch

SMALLEST = 1e-5


def factors(activations: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """s per input channel from max |x| and max |w| of that channel; 1 where the channel is silent.

    >>> factors(np.array([4.0, 1.0]), np.array([1.0, 1.0]), 0.5).tolist()
    [2.0, 1.0]
    """
    x, w = np.maximum(activations, SMALLEST), np.maximum(weights, SMALLEST)
    s = x**strength / w ** (1 - strength)
    return np.where(activations > SMALLEST, s, 1.0).astype(np.float32)


def smooth(model: ir.Model, layers: Sequence[Dense], strength: float, batches: Sequence[Batch], threads: int) -> None:
    """Rescale the inputs of the layers, in place; layers that share an input share its factors.

    Weights that something else reads too (tied to an embedding) leave their input as it is.
    """
    groups: dict[ir.Value, list[Dense]] = {}
    for layer in layers:
        groups.setdefault(layer.x, []).append(layer)
    groups = {x: group for x, group in groups.items() if all(len(layer.stored.uses()) == 1 for layer in group)}
    ranges = observe(model, list(groups), batches, largest_per_channel, threads)
    for x, group in groups.items():
        weights = np.max([np.abs(layer.weight).max(axis=1) for layer in group], axis=0)
        s = factors(ranges[x], weights, strength)
        for layer in group:
            _scale_rows(layer, s)
        if not _fold_into_producer(x, group, s):
            _multiply_on_branch(x, group, s)


def _scale_rows(layer: Dense, s: np.ndarray) -> None:
    scaled = np.ascontiguousarray((layer.weight * s[:, None]).T if layer.turned else layer.weight * s[:, None])
    layer.stored.const_value = ir.tensor(scaled, name=layer.name)


def _fold_into_producer(x: ir.Value, group: Sequence[Dense], s: np.ndarray) -> bool:
    """Divide the scale and bias of the norm that makes x, where nothing else reads x."""
    if {n for n, _ in x.uses()} != {layer.node for layer in group} or x.is_graph_output():
        return False
    node = x.producer()
    while node is not None and node.op_type == "Reshape":  # [batch, time, width] -> [batch · time, width]
        before = graphs.input_of(node, 0)
        node = before.producer() if graphs.only_user(before) is node else None
    if node is None:
        return False
    if node.op_type == "LayerNormalization":
        vectors = [v for v in node.inputs[1:3] if v is not None]
    elif node.op_type == "Mul":
        vectors = [v for v in node.inputs if v is not None and v.is_initializer()]
        if len(vectors) != 1:
            return False
    else:
        return False
    if not all(_own_vector(v, len(s)) for v in vectors):
        return False
    for vector in vectors:
        vector.const_value = ir.tensor((graphs.stored(vector) / s).astype(np.float32), name=vector.name)
    return True


def _own_vector(value: ir.Value, size: int) -> bool:
    array = graphs.constant(value)
    return array is not None and value.is_initializer() and array.shape == (size,) and len(value.uses()) == 1


def _multiply_on_branch(x: ir.Value, group: Sequence[Dense], s: np.ndarray) -> None:
    graph = graphs.graph_of(group[0].node)
    inverse = graphs.add_constant(graph, sibling(group[0].name, "smooth"), (1 / s).astype(np.float32))
    first = min((layer.node for layer in group), key=graph.index)
    scaled = graphs.add_before(first, "Mul", [x, inverse], like=x)[0]
    for layer in group:
        layer.node.replace_input_with(0, scaled)
        layer.x = scaled

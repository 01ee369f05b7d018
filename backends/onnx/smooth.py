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
from backends.onnx.observe import Channels, observe, per_channel
from backends.onnx.session import Batch

SMALLEST = 1e-5
GAIN, GAIN_OF_A_MULTIPLICATION = 1.0, 1.5  # factors of expected noise


def factors(activations: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """s per input channel from max |x| and max |w| of that channel; 1 where the channel is silent.

    >>> factors(np.array([4.0, 1.0]), np.array([1.0, 1.0]), 0.5).tolist()
    [2.0, 1.0]
    """
    x, w = np.maximum(activations, SMALLEST), np.maximum(weights, SMALLEST)
    s = x**strength / w ** (1 - strength)
    return np.where(activations > SMALLEST, s, 1.0).astype(np.float32)


def noise(weight: np.ndarray, channels: Channels, s: np.ndarray) -> float:
    """Expected square of what rounding adds to one position's outputs, after scaling by s; in arbitrary units.

    Activations round to steps of their tensor's range / 255, weights to steps of their column's range / 127.
    weight: [inputs, outputs].
    """
    scaled = weight * s[:, None]
    activation_step = (channels.largest / s).max() / 255
    weight_steps = np.abs(scaled).max(axis=0) / 127
    energy = (channels.mean_square / s**2).sum()
    return float(activation_step**2 * np.square(scaled).sum() + np.square(weight_steps).sum() * energy)


def smooth(model: ir.Model, layers: Sequence[Dense], strength: float, batches: Sequence[Batch], threads: int) -> None:
    """Rescale the inputs of the layers, in place; layers that share an input share its factors.

    An input stays as it is where that would not lower the expected rounding noise (or lower it too little to pay for a
    multiplication), and where a layer's weights are read by something else too.
    """
    groups: dict[ir.Value, list[Dense]] = {}
    for layer in layers:
        groups.setdefault(layer.x, []).append(layer)
    groups = {x: group for x, group in groups.items() if all(len(layer.stored.uses()) == 1 for layer in group)}
    seen = observe(model, list(groups), batches, per_channel, threads)
    for x, group in groups.items():
        weight = np.concatenate([layer.weight for layer in group], axis=1)
        s = factors(seen[x].largest, np.abs(weight).max(axis=1), strength)
        gain = noise(weight, seen[x], np.ones_like(s)) / max(noise(weight, seen[x], s), SMALLEST**2)
        vectors = _foldable(x, group)
        if gain < (GAIN if vectors else GAIN_OF_A_MULTIPLICATION):
            continue
        for layer in group:
            _scale_rows(layer, s)
        if vectors:
            for vector in vectors:
                vector.const_value = ir.tensor((graphs.stored(vector) / s).astype(np.float32), name=vector.name)
        else:
            _multiply_on_branch(x, group, s)


def _scale_rows(layer: Dense, s: np.ndarray) -> None:
    scaled = np.ascontiguousarray((layer.weight * s[:, None]).T if layer.turned else layer.weight * s[:, None])
    layer.stored.const_value = ir.tensor(scaled, name=layer.name)


def _foldable(x: ir.Value, group: Sequence[Dense]) -> list[ir.Value]:
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


def _multiply_on_branch(x: ir.Value, group: Sequence[Dense], s: np.ndarray) -> None:
    graph = graphs.graph_of(group[0].node)
    inverse = graphs.add_constant(graph, sibling(group[0].name, "smooth"), (1 / s).astype(np.float32))
    first = min((layer.node for layer in group), key=graph.index)
    scaled = graphs.add_before(first, "Mul", [x, inverse], like=x)[0]
    for layer in group:
        layer.node.replace_input_with(0, scaled)
        layer.x = scaled

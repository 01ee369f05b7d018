"""LSTM weights as 8-bit integers, by ONNX Runtime's own operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx.dense import sibling, symmetric
from knowledge.values import Refusal

KEPT_ATTRIBUTES = ("hidden_size", "direction", "input_forget", "clip")


def lstms(graph: ir.Graph) -> list[ir.Node]:
    """Every LSTM, in graph order."""
    return [node for node in graph if node.op_type == "LSTM" and node.domain == ""]


def quantize_lstms(graph: ir.Graph, technique: str, nodes: Sequence[ir.Node] | None = None) -> list[Refusal]:
    """Replace LSTMs with stored weights by DynamicQuantizeLSTM, in place; returns those left in float.

    All of the graph, or the given `nodes`.
    """
    left = []
    for node in lstms(graph) if nodes is None else nodes:
        if reason := unsupported(node):
            left.append(
                Refusal(
                    technique=technique,
                    rule="int8-lstm-form",
                    observed=f"an LSTM with {reason}",
                    required="the plain form, time first, with stored weights",
                )
            )
            continue
        _quantize(node, graph)
    return left


def unsupported(node: ir.Node) -> str:
    """Why the operator cannot take an LSTM's place; empty where it can."""
    if any(graphs.constant(v) is None or not (v and v.is_initializer()) for v in node.inputs[1:3]):
        return "computed weights"
    if graphs.attribute(node, "layout", 0) != 0:
        return "the batch first"
    if len(node.inputs) > 7 and node.inputs[7] is not None:
        return "peepholes"
    if unknown := set(node.attributes) - {*KEPT_ATTRIBUTES, "layout"}:
        return ", ".join(sorted(unknown))
    return ""


def _quantize(node: ir.Node, graph: ir.Graph) -> None:
    inputs = list(node.inputs) + [None] * (8 - len(node.inputs))
    extra: list[ir.Value] = []
    for slot in (1, 2):
        value = graphs.input_of(node, slot)
        name = graphs.name_of(value)
        # the operator wants [directions, inputs, 4 * hidden]
        q, scales = per_gate(graphs.stored(value).transpose(0, 2, 1))
        del graph.initializers[name]
        value.name = f"{name}_float"
        inputs[slot] = graphs.add_constant(graph, name, q)
        extra.append(graphs.add_constant(graph, sibling(name, "scale"), scales))
        extra.append(graphs.add_constant(graph, sibling(name, "zero"), np.zeros(scales.shape, np.int8)))
    attributes = {name: node.attributes[name].value for name in KEPT_ATTRIBUTES if name in node.attributes}
    outputs = graphs.add_before(
        node, "DynamicQuantizeLSTM", [*inputs, *extra], domain=graphs.MICROSOFT, outputs=len(node.outputs), **attributes
    )
    graphs.replace(node, outputs)


def per_gate(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[directions, inputs, 4 * hidden] as int8 with one scale per direction and column: [directions, 4 * hidden]."""
    pairs = [symmetric(direction, axis=1) for direction in weight]
    return np.stack([q for q, _ in pairs]), np.stack([scale for _, scale in pairs])

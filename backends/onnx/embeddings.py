"""Embedding tables as 8-bit integers, one scale per row.

    ids ─┬─ Gather(table int8 [rows, width]) ─ Cast ─┐
         └─ Gather(scales float [rows, 1]) ──────────┴─ Mul ─ vectors

Standard operators that any runtime has; the table is never expanded.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx.dense import sibling, symmetric

SMALLEST_TABLE = 4096  # numbers: below, the extra nodes cost more than they save


@dataclass(frozen=True)
class Embedding:
    """A Gather of rows from a stored float matrix."""

    node: ir.Node
    stored: ir.Value

    @property
    def name(self) -> str:
        return graphs.name_of(self.stored)

    @property
    def large(self) -> bool:
        tensor = self.stored.const_value
        return tensor is not None and tensor.size >= SMALLEST_TABLE


def embeddings(graph: ir.Graph) -> list[Embedding]:
    """Every lookup of rows in a stored float matrix, in graph order."""
    found = []
    for node in graph:
        if node.op_type != "Gather" or node.domain != "" or graphs.attribute(node, "axis", 0) != 0:
            continue
        table = node.inputs[0]
        if table is None or not table.is_initializer() or graphs.constant(node.inputs[1]) is not None:
            continue
        tensor = table.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2:
            found.append(Embedding(node, table))
    return found


def quantize_embedding(embedding: Embedding) -> tuple[ir.Value, ir.Value]:
    """Replace one lookup, in place; returns the 8-bit table and its scales [rows], for layers that share them."""
    node, graph = embedding.node, graphs.graph_of(embedding.node)
    q, scales = symmetric(graphs.stored(embedding.stored), axis=0)
    name = embedding.name
    graph.initializers.pop(name)
    embedding.stored.name = f"{name}_float"  # lives on where something else still reads it
    stored = graphs.add_constant(graph, name, q)
    stored_scales = graphs.add_constant(graph, sibling(name, "scale"), scales.reshape(-1, 1))
    lookup(node, stored, stored_scales)
    if embedding.stored.uses():
        graph.initializers[f"{name}_float"] = embedding.stored
    return stored, stored_scales


def lookup(node: ir.Node, stored: ir.Value, scales: ir.Value) -> None:
    """Put an 8-bit lookup in the place of a float Gather."""
    ids = node.inputs[1]
    rows = graphs.add_before(node, "Gather", [stored, ids], axis=0)[0]
    wide = graphs.add_before(node, "Cast", [rows], to=int(ir.DataType.FLOAT))[0]
    scale = graphs.add_before(node, "Gather", [scales, ids], axis=0)[0]
    graphs.replace(node, [graphs.add_before(node, "Mul", [wide, scale], like=node.outputs[0])[0]])

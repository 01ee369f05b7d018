"""How many bytes of a file are numbers of the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from backends.onnx import graph as graphs


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every stored tensor: initializers and tensors of Constant nodes, those of subgraphs and functions included."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    holders: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    for holder in holders:
        for node in holder.all_nodes():
            if node.op_type == "Constant" and node.domain == "" and (attr := node.attributes.get("value")):
                yield attr.as_tensor()


def weight_bytes(path: Path) -> int:
    """Bytes of all tensors in an ONNX file, packed ones as stored; raises InputError where it cannot be read."""
    return sum(tensor.nbytes for tensor in tensors(graphs.load(path)))

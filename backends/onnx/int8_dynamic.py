"""Dense, recurrent and embedding weights as 8-bit integers; activation ranges measured as the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx.dense import Dense, dense_layers, sibling, symmetric
from backends.onnx.embeddings import embeddings, quantize_embedding
from backends.onnx.formats import layer_formats
from backends.onnx.lstm import quantize_lstms
from backends.onnx.observe import calibration_batches
from backends.onnx.sensitive import float_layers, smoothed
from backends.onnx.smooth import smooth
from backends.onnx.strip import strip_model
from knowledge.values import Decision, Refusal

if TYPE_CHECKING:
    from backends.context import Context
    from knowledge.techniques.quantize import Int8Dynamic

Tables = dict[ir.Value, tuple[ir.Value, ir.Value]]  # float table -> (8-bit table, scales [rows, 1])


def apply(technique: Int8Dynamic, path: Path, out: Path, context: Context) -> Decision:
    """Write `out` as `path` with 8-bit weights per output channel and 8-bit activations per tensor.

    Layers that read the same activation share its quantization. Embeddings get one scale per row; a head tied to its
    embedding reads the same 8-bit table. The decision names what was left in float and why.
    """
    model = graphs.load(path)
    layers = dense_layers(model.graph)
    kept, stayed = float_layers(technique, path, context)
    if technique.smooth > 0 and layers:
        batches = calibration_batches(context)
        smooth(model, smoothed(layers, kept), technique.smooth, batches, context.workload.threads)
    tables, skipped = quantize_embeddings(model.graph, technique.id) if technique.embeddings else ({}, [])
    kept_float = {e.stored for e in embeddings(model.graph)}
    integer = [layer for layer in layers if layer.name not in kept]
    skipped += [*stayed, *quantize_dense(integer, tables, kept_float, technique.id)]
    skipped += quantize_lstms(model.graph, technique.id)
    graphs.drop_unused_constants(model.graph)
    strip_model(model)
    graphs.save(model, out)
    return Decision(technique=technique.id, formats=layer_formats(model, context.layers), skipped=tuple(skipped))


def quantize_embeddings(graph: ir.Graph, technique: str) -> tuple[Tables, list[Refusal]]:
    """Replace every large embedding lookup; returns the tables, for layers tied to them, and what was left."""
    tables: Tables = {}
    left = []
    for embedding in embeddings(graph):
        if embedding.large:
            tables[embedding.stored] = quantize_embedding(embedding)
        else:
            left.append(
                Refusal(
                    technique=technique,
                    rule="int8-small-embedding",
                    observed=f"{embedding.name} is small",
                    required="a table in which the saved bytes outweigh the extra nodes",
                )
            )
    return tables, left


def quantize_dense(layers: Iterable[Dense], tables: Tables, kept_float: set[ir.Value], technique: str) -> list[Refusal]:
    """Replace dense layers by integer products, in place; returns those left in float."""
    inputs: dict[ir.Value, list[ir.Value]] = {}
    left = []
    for layer in layers:
        if layer.stored in kept_float:
            left.append(
                Refusal(
                    technique=technique,
                    rule="int8-tied-embedding",
                    observed=f"{layer.name} is also an embedding that stays in float",
                    required="embeddings=true, or the weights would be stored twice",
                )
            )
            continue
        x = graphs.input_of(layer.node, 0)  # by now perhaps the output of a layer that was replaced
        if x not in inputs:
            inputs[x] = graphs.add_before(layer.node, "DynamicQuantizeLinear", [x], outputs=3)
        _integer_product(layer, inputs[x], tables)
    return left


def _integer_product(layer: Dense, quantized: Sequence[ir.Value], tables: Tables) -> None:
    """x_q · w_q in 32-bit integers, times both scales, plus the bias: the pattern that runtimes know to fuse."""
    node = layer.node
    x, x_scale, x_zero = quantized
    weight, scale = _stored_weight(layer, tables)
    product = graphs.add_before(node, "MatMulInteger", [x, weight, x_zero])[0]
    wide = graphs.add_before(node, "Cast", [product], to=int(ir.DataType.FLOAT))[0]
    both = graphs.add_before(node, "Mul", [x_scale, scale])[0]
    y = graphs.add_before(node, "Mul", [wide, both], like=node.outputs[0])[0]
    if layer.bias is not None:
        y = graphs.add_before(node, "Add", [y, layer.bias], like=node.outputs[0])[0]
    graphs.replace(node, [y])


def _stored_weight(layer: Dense, tables: Tables) -> tuple[ir.Value, ir.Value]:
    """The weight [inputs, outputs] as int8, and its scales [outputs]."""
    node, graph = layer.node, graphs.graph_of(layer.node)
    if layer.stored in tables:  # rows of the embedding are columns of the head
        table, scales = tables[layer.stored]
        shape = graphs.add_constant(graph, "flat", np.array([-1], np.int64))
        flat = graphs.add_before(node, "Reshape", [scales, shape])[0]
        return graphs.add_before(node, "Transpose", [table], perm=[1, 0])[0], flat
    q, per_output = symmetric(layer.weight, axis=1)
    name = layer.name
    del graph.initializers[name]
    layer.stored.name = f"{name}_float"
    return graphs.add_constant(graph, name, q), graphs.add_constant(graph, sibling(name, "scale"), per_output)

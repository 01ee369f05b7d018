"""Convolutions, dense layers, additions and embeddings in 8 bits, with activation ranges from calibration data.

    x ─ Quantize ─ Dequantize ─ Conv ─ Relu ─ Quantize ─ Dequantize ─ …
             int8 weight ─ Dequantize ─┘  (per output channel)

The runtime turns each such group into one integer kernel. A convolution needs a quantizer behind it and an int32 bias;
a dense layer is better left without one behind it: its output stays in float.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx.dense import Dense, dense_layers, sibling, symmetric
from backends.onnx.embeddings import embeddings
from backends.onnx.formats import layer_formats
from backends.onnx.int8_dynamic import Tables, quantize_embeddings
from backends.onnx.observe import calibration_batches
from backends.onnx.ranges import Grid, calibrated_grids
from backends.onnx.sensitive import float_layers, is_convolution, smoothed
from backends.onnx.smooth import smooth
from backends.onnx.strip import strip_model
from knowledge.values import Decision, Refusal

if TYPE_CHECKING:
    from backends.context import Context
    from knowledge.techniques.quantize import Int8Static

RECTIFIERS = ("Relu", "Clip")  # what the quantizer behind them makes superfluous


@dataclass
class Sites:
    """What becomes integer: nodes by kind, and the values that get a quantizer."""

    convs: list[ir.Node] = field(default_factory=list)
    denses: list[Dense] = field(default_factory=list)
    adds: list[ir.Node] = field(default_factory=list)
    branches: dict[ir.Value, None] = field(default_factory=dict)  # quantized for some readers (an ordered set)
    whole: dict[ir.Value, None] = field(default_factory=dict)  # quantized for every reader

    @property
    def values(self) -> list[ir.Value]:
        return [*self.whole, *(v for v in self.branches if v not in self.whole)]


def apply(technique: Int8Static, path: Path, out: Path, context: Context) -> Decision:
    """Write `out` as `path` in 8 bits: weights per output channel, activations per tensor in calibrated ranges.

    Embeddings get one scale per row. Recurrent layers stay in float (the runtime has no calibrated form of them), as
    the decision says. Raises InputError where there is no calibration data.
    """
    model = graphs.load(path)
    graph = model.graph
    batches = calibration_batches(context)
    threads = context.workload.threads
    kept, stayed = float_layers(technique, path, context)
    if technique.smooth > 0 and (layers := smoothed(dense_layers(graph), kept)):
        smooth(model, layers, technique.smooth, batches, threads)
    sites = find_sites(graph, kept)
    grids = calibrated_grids(model, sites.values, batches, technique.calibration, threads)
    tables, skipped = quantize_embeddings(graph, technique.id) if technique.embeddings else ({}, [])
    kept_float = {e.stored for e in embeddings(graph)}
    skipped += [*stayed, *(_tied(technique.id, layer) for layer in sites.denses if layer.stored in kept_float)]
    sites.denses = [layer for layer in sites.denses if layer.stored not in kept_float]
    insert_quantizers(graph, sites, grids)
    for node in sites.convs:
        quantize_conv(node, grids)
    for layer in sites.denses:
        _quantize_dense(layer, grids, tables)
    skipped += [_recurrent(technique.id, node) for node in graph if node.op_type in ("LSTM", "GRU", "RNN")]
    graphs.drop_unused_constants(graph)
    strip_model(model)
    graphs.save(model, out)
    return Decision(technique=technique.id, formats=layer_formats(model, context.layers), skipped=tuple(skipped))


# -- where -----------------------------------------------------------------------------------------


def find_sites(graph: ir.Graph, kept: Collection[str] = ()) -> Sites:
    """Convolutions and dense layers with stored weights but those `kept`, and the additions between convolutions."""
    sites = Sites(denses=[layer for layer in dense_layers(graph) if layer.name not in kept])
    for node in graph:
        if is_convolution(node) and graphs.name_of(graphs.input_of(node, 1)) not in kept:
            sites.convs.append(node)
            sites.branches[graphs.input_of(node, 0)] = None
            sites.whole[_rectified(node.outputs[0])] = None
        elif node.op_type == "Add" and all(v in sites.whole for v in node.inputs):
            sites.adds.append(node)
            sites.whole[_rectified(node.outputs[0])] = None
    for layer in sites.denses:
        sites.branches[layer.x] = None
    return sites


def _rectified(value: ir.Value) -> ir.Value:
    """The value after the rectifier that is its only reader, else the value itself."""
    user = graphs.only_user(value)
    if user is None or user.op_type not in RECTIFIERS:
        return value
    if user.op_type == "Clip" and graphs.constant(user.inputs[1] if len(user.inputs) > 1 else None) != 0:
        return value
    return user.outputs[0]


# -- how -------------------------------------------------------------------------------------------


def insert_quantizers(graph: ir.Graph, sites: Sites, grids: dict[ir.Value, Grid]) -> None:
    """Put a quantize–dequantize pair on each site's values; afterwards `Dense.x` and `grids` know the new values."""
    integer = {*sites.convs, *(layer.node for layer in sites.denses)}
    for value in sites.values:
        readers = [(node, i) for node, i in value.uses() if value in sites.whole or (node in integer and i == 0)]
        if not readers:
            continue
        name = _reader_name(value, readers) if value not in sites.whole else _writer_name(value)
        first = min((node for node, _ in readers), key=graph.index)
        scale = graphs.add_constant(graph, f"{name}_scale", grids[value].scale)
        zero = graphs.add_constant(graph, f"{name}_zero", grids[value].zero)
        codes = graphs.add_before(first, "QuantizeLinear", [value, scale, zero])[0]
        rounded = graphs.add_before(first, "DequantizeLinear", [codes, scale, zero], like=value)[0]
        for node, i in readers:
            node.replace_input_with(i, rounded)
        grids[rounded] = grids[value]
    for layer in sites.denses:
        layer.x = graphs.input_of(layer.node, 0)


def _reader_name(value: ir.Value, readers: Sequence[tuple[ir.Node, int]]) -> str:
    weight = next((n.inputs[1].name for n, i in readers if i == 0 and len(n.inputs) > 1 and n.inputs[1]), None)
    return f"{weight.rpartition('.')[0]}.input" if weight and "." in weight else "input"


def _writer_name(value: ir.Value) -> str:
    node = value.producer()
    if node is not None and node.op_type in RECTIFIERS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    weight = node.inputs[1].name if node is not None and node.op_type == "Conv" and node.inputs[1] else None
    return f"{weight.rpartition('.')[0]}.output" if weight and "." in weight else "sum"


def quantize_conv(node: ir.Node, grids: dict[ir.Value, Grid]) -> None:
    """Store a convolution's weight and bias as integers; its input has a quantizer already."""
    x, stored = graphs.input_of(node, 0), graphs.input_of(node, 1)
    scales = _replace_weight(node, 1, stored, graphs.stored(stored), axis=0)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        _replace_bias(node, 2, stored, grids[x].scale * scales)


def _quantize_dense(layer: Dense, grids: dict[ir.Value, Grid], tables: Tables) -> None:
    node = layer.node
    if layer.stored in tables:
        table, scales = tables[layer.stored]
        # the head reads the embedding's rows: [rows, width] with one scale per row, turned to [width, rows]
        scale = graphs.stored(scales).reshape(-1)
        turned = bool(graphs.attribute(node, "transB", 0))
        codes = table if turned else graphs.add_before(node, "Transpose", [table], perm=[1, 0])[0]
        per_row = graphs.add_constant(graphs.graph_of(node), sibling(layer.name, "head_scale"), scale)
        wide = graphs.add_before(node, "DequantizeLinear", [codes, per_row], axis=0 if turned else 1)[0]
        node.replace_input_with(1, wide)
    else:
        rows_first = bool(graphs.attribute(node, "transB", 0))
        weight = layer.weight.T if rows_first else layer.weight  # in the orientation in which the node reads it
        scale = _replace_weight(node, 1, layer.stored, weight, axis=0 if rows_first else 1)
    if layer.bias is not None:
        _replace_bias(node, 2, layer.stored, grids[layer.x].scale * scale)


def _replace_weight(node: ir.Node, slot: int, stored: ir.Value, weight: np.ndarray, axis: int) -> np.ndarray:
    graph, name = graphs.graph_of(node), graphs.name_of(stored)
    q, scales = symmetric(weight, axis)
    if graph.initializers.get(name) is stored:
        del graph.initializers[name]
        stored.name = f"{name}_float"
    codes = graphs.add_constant(graph, name, q)
    scale = graphs.add_constant(graph, sibling(name, "scale"), scales)
    zero = graphs.add_constant(graph, sibling(name, "zero"), np.zeros(scales.shape, np.int8))
    node.replace_input_with(slot, graphs.add_before(node, "DequantizeLinear", [codes, scale, zero], axis=axis)[0])
    return scales


def _replace_bias(node: ir.Node, slot: int, stored: ir.Value, scale: np.ndarray) -> None:
    """A bias as int32 in units of input scale × weight scale, as integer kernels accumulate."""
    graph, bias = graphs.graph_of(node), node.inputs[slot]
    array = graphs.constant(bias)
    if array is None or bias is None or array.shape != scale.shape:
        return
    path = (stored.name or "").rpartition(".")[0]
    name = f"{path}.bias" if path else "bias"
    if graph.initializers.get(bias.name or "") is bias and len(bias.uses()) == 1:
        del graph.initializers[bias.name or ""]
        bias.name = f"{name}_float"
    scale = scale.astype(np.float32)
    codes = np.clip(np.rint(array / scale), -(2**31), 2**31 - 1).astype(np.int32)
    inputs = [graphs.add_constant(graph, name, codes), graphs.add_constant(graph, f"{name}_scale", scale)]
    node.replace_input_with(slot, graphs.add_before(node, "DequantizeLinear", inputs, axis=0)[0])


# -- what stays ------------------------------------------------------------------------------------


def _tied(technique: str, layer: Dense) -> Refusal:
    return Refusal(
        technique=technique,
        rule="int8-tied-embedding",
        observed=f"{layer.name} is also an embedding that stays in float",
        required="embeddings=true, or the weights would be stored twice",
    )


def _recurrent(technique: str, node: ir.Node) -> Refusal:
    weight = node.inputs[1].name if node.inputs[1] is not None else "?"
    return Refusal(
        technique=technique,
        rule="int8-static-recurrent",
        observed=f"{node.op_type} {weight}",
        required="an operator with calibrated ranges, which ONNX Runtime has not",
        remedy="int8_dynamic",
    )

"""Half precision: half the bytes, the same graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from backends.onnx import graph as graphs
from backends.onnx.formats import layer_formats
from backends.onnx.strip import strip_model
from knowledge.values import Decision, RunFailed

if TYPE_CHECKING:
    from backends.context import Context
    from knowledge.techniques.quantize import Fp16

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST_HALF = 65504.0

# norms, softmaxes, sums and squares leave the range or precision of half floats; the rest has no half form
# fmt: off
KEPT_IN_FLOAT = frozenset(
    {
        "LayerNormalization", "RMSNormalization", "BatchNormalization", "InstanceNormalization",
        "GroupNormalization", "Softmax", "LogSoftmax", "Pow", "Sqrt", "Reciprocal", "Exp", "Log",
        "ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "CumSum", "LSTM", "GRU",
        "RNN", "Range", "Resize", "Upsample", "Mod", "TopK", "Multinomial", "RandomNormal",
        "RandomNormalLike", "RandomUniform", "RandomUniformLike", "EyeLike", "Bernoulli", "QuantizeLinear",
        "DequantizeLinear", "DynamicQuantizeLinear", "NonMaxSuppression", "RoiAlign", "Det", "Sin", "Cos",
    }
)
# fmt: on


def apply(technique: Fp16, path: Path, out: Path, context: Context) -> Decision:
    """Write `out` as `path` with every weight in half precision; inputs and outputs keep their types.

    Arithmetic is in half precision too, but for norms, softmaxes and reductions, which compute in single precision
    between casts. Raises RunFailed for graphs with control flow.
    """
    model = graphs.load(path)
    to_half(model)
    strip_model(model)
    graphs.save(model, out)
    return Decision(technique=technique.id, formats=layer_formats(model, context.layers))


def to_half(model: ir.Model) -> None:
    """Convert a model in place; raises RunFailed for graphs with control flow."""
    graph = model.graph
    if any(True for _ in graph.subgraphs()):
        raise RunFailed("fp16: graphs with If, Loop or Scan nodes are not converted")
    ShapeInferencePass()(model)
    for value in graph.inputs:
        if value.dtype == FLOAT:
            _read_as(value, HALF)
    for value in list(graph.initializers.values()):
        _halve(value)
    for node in list(graph):
        if node.op_type in KEPT_IN_FLOAT or node.domain != "":
            _keep(node)
        else:
            _convert(node)
    for value in list(graph.outputs):
        if value.dtype == HALF:
            _return_float(graph, value)
    graph.sort()


def _halve(value: ir.Value) -> None:
    """Store a constant in half precision, clipped to what it can hold: masks use the most negative float."""
    array = graphs.constant(value)
    if array is None or array.dtype != np.float32 or value.is_graph_output():
        return
    half = np.clip(array, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
    value.const_value = ir.tensor(half, name=value.name)
    value.dtype = HALF


def _convert(node: ir.Node) -> None:
    """Let a node compute in half precision: its float outputs become half ones."""
    for name in ("to", "dtype"):
        if name in node.attributes and node.attributes[name].value == int(FLOAT):
            node.attributes[name] = ir.AttrInt64(name, int(HALF))
    if node.op_type == "ConstantOfShape":
        filler = node.attributes.get("value")
        array = np.zeros(1, np.float32) if filler is None else filler.as_tensor().numpy()
        if array.dtype == np.float32:
            half = np.clip(array, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(half))
    for output in node.outputs:
        if output.dtype == FLOAT:
            output.dtype = HALF


def _keep(node: ir.Node) -> None:
    """Casts around a node that computes in single precision."""
    for i, value in enumerate(node.inputs):
        if value is not None and value.dtype == HALF:
            node.replace_input_with(i, graphs.add_before(node, "Cast", [value], to=int(FLOAT))[0])
    for output in node.outputs:
        if output.dtype == FLOAT and output.uses():
            _read_as(output, HALF)


def _read_as(value: ir.Value, dtype: ir.DataType) -> None:
    """Let every reader of `value` read it converted. The graph's order is restored at the end."""
    readers = list(value.uses())
    if not readers:
        return
    converted = graphs.add_before(readers[0][0], "Cast", [value], to=int(dtype))[0]
    converted.dtype, converted.shape = dtype, value.shape
    for node, i in readers:
        node.replace_input_with(i, converted)


def _return_float(graph: ir.Graph, value: ir.Value) -> None:
    cast = ir.Node("", "Cast", [value], ir.convenience.convert_attributes({"to": int(FLOAT)}), num_outputs=1)
    graph.append(cast)
    name, value.name = value.name, f"{value.name}_half"
    cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = name, FLOAT, value.shape
    graph.outputs[list(graph.outputs).index(value)] = cast.outputs[0]

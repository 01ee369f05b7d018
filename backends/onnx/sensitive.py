"""Which layers 8 bits hurt most, by measurement: each is rounded alone, and the model's own outputs tell the harm.

    x ─┬────────────────────── Where(on[i]) ─ layer ─ …       weight ─┬──────────── Where(on[i]) ─ layer
       └ Quantize ─ Dequantize ─┘                      int8 weight ─ Dequantize ─┘

One session holds every layer in both forms and reads which of them are rounded: a layer costs a run, not a model. The
errors of different layers add up in squares, and a layer in float costs the same bytes and time for each weight: those
stay that take the largest sum of squares with them, within a share of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from backends.onnx import graph as graphs
from backends.onnx.dense import Dense, dense_layers, symmetric
from backends.onnx.embeddings import embeddings
from backends.onnx.observe import BATCH, calibration_batches
from backends.onnx.options import CPU, session_options
from backends.onnx.ranges import Grid, calibrated_grids
from backends.onnx.session import Batch, completed
from backends.onnx.smooth import smooth
from knowledge.techniques.quantize import Int8Dynamic, Int8Static
from knowledge.values import Refusal, RunFailed

if TYPE_CHECKING:
    from backends.context import Context

SAMPLES = 16  # that each layer is judged on
SWITCHES = "rounded_layers"


@dataclass(frozen=True)
class Candidate:
    """A stored weight, as the nodes read it that use it."""

    name: str
    nodes: tuple[ir.Node, ...]
    weight: np.ndarray
    axis: int  # of the outputs


def float_layers(
    technique: Int8Dynamic | Int8Static, path: Path, context: Context
) -> tuple[frozenset[str], list[Refusal]]:
    """The weights of a file that stay in float, at most `float_share` of them, by name; and why.

    Raises InputError where there is no calibration data to measure with.
    """
    if not technique.float_share:
        return frozenset(), []
    model, threads = graphs.load(path), context.workload.threads
    batches = calibration_batches(context)
    if technique.smooth > 0 and (layers := dense_layers(model.graph)):
        smooth(model, layers, technique.smooth, batches, threads)
    found = candidates(model.graph, convolutions=isinstance(technique, Int8Static))
    weights = np.array([one.weight.size for one in found])
    if not len(found) or weights.min() > technique.float_share * weights.sum():
        return frozenset(), [_none(technique, weights)]
    grids: dict[ir.Value, Grid] = {}
    if isinstance(technique, Int8Static):
        values = list(dict.fromkeys(graphs.input_of(node, 0) for one in found for node in one.nodes))
        grids = calibrated_grids(model, values, batches, technique.calibration, threads)
    add_switches(model.graph, found, grids)
    harm = harms(model, len(found), batches[: SAMPLES // BATCH], threads)
    kept = np.flatnonzero(chosen(harm, weights, technique.float_share)).tolist()
    reasons = [_reason(technique, found[i].name, harm, i) for i in kept]
    return frozenset(found[i].name for i in kept), reasons


def smoothed(layers: Sequence[Dense], kept: frozenset[str]) -> list[Dense]:
    """The layers worth smoothing: those that read what a layer in 8 bits reads."""
    inputs = {layer.x for layer in layers if layer.name not in kept}
    return [layer for layer in layers if layer.x in inputs]


def candidates(graph: ir.Graph, convolutions: bool) -> list[Candidate]:
    """Dense layers, and convolutions where asked for, by their weights; heads tied to an embedding follow it."""
    tables = {embedding.stored for embedding in embeddings(graph)}
    found: dict[str, Candidate] = {}

    def add(stored: ir.Value, node: ir.Node, weight: np.ndarray, axis: int) -> None:
        name = graphs.name_of(stored)
        others = found[name].nodes if name in found else ()
        found[name] = Candidate(name, (*others, node), weight, axis)

    for layer in dense_layers(graph):
        if layer.stored not in tables:
            rows_first = bool(graphs.attribute(layer.node, "transB", 0))
            add(layer.stored, layer.node, layer.weight.T if rows_first else layer.weight, 0 if rows_first else 1)
    for node in graph if convolutions else ():
        if is_convolution(node):
            stored = graphs.input_of(node, 1)
            add(stored, node, graphs.stored(stored), 0)
    return list(found.values())


def is_convolution(node: ir.Node) -> bool:
    """Whether a node is a convolution with a stored float weight."""
    weight = node.inputs[1] if node.domain == "" and node.op_type == "Conv" else None
    return weight is not None and weight.is_initializer() and weight.dtype == ir.DataType.FLOAT


# -- measuring -------------------------------------------------------------------------------------


def add_switches(graph: ir.Graph, layers: Sequence[Candidate], grids: dict[ir.Value, Grid]) -> None:
    """Give every layer both forms, and the graph an input that says which layers are rounded: bool [layers].

    `grids` are those of calibrated inputs; an input without one gets its range as the model runs.
    """
    switches = ir.Value(name=SWITCHES, shape=ir.Shape([len(layers)]), type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(switches)
    rounded: dict[ir.Value, ir.Value] = {}
    for number, layer in enumerate(layers):
        index = graphs.add_constant(graph, f"{layer.name}_number", np.int64(number))
        codes, scales = symmetric(layer.weight, layer.axis)
        codes_value = graphs.add_constant(graph, f"{layer.name}_codes", codes)
        scale_value = graphs.add_constant(graph, f"{layer.name}_scale", scales)
        for node in layer.nodes:
            x, weight = graphs.input_of(node, 0), graphs.input_of(node, 1)
            if x not in rounded:
                rounded[x] = _rounded(node, x, grids.get(x))
            on = graphs.add_before(node, "Gather", [switches, index])[0]
            wide = graphs.add_before(node, "DequantizeLinear", [codes_value, scale_value], axis=layer.axis)[0]
            node.replace_input_with(0, graphs.add_before(node, "Where", [on, rounded[x], x], like=x)[0])
            node.replace_input_with(1, graphs.add_before(node, "Where", [on, wide, weight], like=weight)[0])


def _rounded(node: ir.Node, x: ir.Value, grid: Grid | None) -> ir.Value:
    """The value in 8 bits and back, before the first node that reads it so."""
    if grid is None:
        codes, scale, zero = graphs.add_before(node, "DynamicQuantizeLinear", [x], outputs=3)
    else:
        scale = graphs.add_constant(graphs.graph_of(node), "range_scale", grid.scale)
        zero = graphs.add_constant(graphs.graph_of(node), "range_zero", grid.zero)
        codes = graphs.add_before(node, "QuantizeLinear", [x, scale, zero])[0]
    return graphs.add_before(node, "DequantizeLinear", [codes, scale, zero], like=x)[0]


def harms(model: ir.Model, layers: int, batches: Sequence[Batch], threads: int) -> np.ndarray:
    """Error of the model's first output, as a share of its norm, when each layer alone is rounded: [layers]."""
    payload = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(payload, session_options(threads), providers=[CPU])
    output = session.get_outputs()[0].name
    error, norm = np.zeros(layers), 0.0
    for batch in batches:
        feed = completed({**batch, SWITCHES: np.zeros(layers, bool)}, session)
        exact = session.run([output], feed)[0].astype(np.float64)
        norm += float(np.square(exact).sum())
        for number in range(layers):
            feed[SWITCHES] = np.arange(layers) == number
            error[number] += np.square(session.run([output], feed)[0] - exact).sum()
    if not np.isfinite(error).all() or not np.isfinite(norm):
        raise RunFailed("the model's outputs on calibration data are not finite: no layer's error can be told")
    share: np.ndarray = np.sqrt(error / norm) if norm else error
    return share


# -- choosing --------------------------------------------------------------------------------------


def chosen(harm: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
    """Which layers to keep: the largest sum of squared errors that fits into a share of the weights.

    >>> chosen(np.array([3.0, 2.0, 2.5, 0.1]), np.array([60, 30, 30, 40]), 0.4).tolist()
    [False, True, True, False]
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if not harm.any():
        return np.zeros(len(harm), bool)
    gains = np.square(harm / harm.max())
    room = LinearConstraint(weights / weights.sum(), ub=share)
    found = milp(-gains, constraints=room, integrality=np.ones(len(harm)), bounds=Bounds(0, 1))
    if found.x is None:
        raise RunFailed(f"no choice of layers was found ({found.message})")
    kept: np.ndarray = (found.x > 0.5) & (harm > 0)
    return kept


def _reason(technique: Int8Dynamic | Int8Static, name: str, harm: np.ndarray, number: int) -> Refusal:
    square = np.square(harm)
    return Refusal(
        technique=technique.id,
        rule="int8-sensitive-layer",
        observed=f"{name}: 8 bits there alone move the outputs by {100 * harm[number]:.2g} % of their norm, "
        f"{100 * square[number] / square.sum():.2g} % of what all layers do",
        required=f"a smaller float_share than {technique.float_share:g} to store it in 8 bits",
    )


def _none(technique: Int8Dynamic | Int8Static, weights: np.ndarray) -> Refusal:
    least = weights.min() / weights.sum() if len(weights) else 0.0
    return Refusal(
        technique=technique.id,
        rule="int8-no-layer-fits-the-share",
        observed=f"the smallest layer has {100 * least:.2g} % of the weights" if least else "no layer that can stay",
        required=f"a layer with at most {100 * technique.float_share:.2g} %, for it to stay in float",
        remedy="a larger float_share" if least else "leave float_share out",
    )

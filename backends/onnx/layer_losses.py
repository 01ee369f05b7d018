"""What the outputs lose when one layer alone is stored in fewer bits: measured once for a file, and kept.

    one session over the float file     weights listed as inputs: a run takes the rounded numbers of one layer
                                        convolutions in both forms, with a switch: their inputs are rounded too

A form of a layer costs a run, not a file. Losses depend on the file, the samples and the forms, not on how many bytes
are to be saved: they are kept under a key that hashes the former, and every size is solved from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from backends.onnx import graph as graphs
from backends.onnx.blockwise import Blocks, Matrix
from backends.onnx.divergence import BATCH, SAMPLES, TOKENS, Scale, has_logits
from backends.onnx.experts import Stack, expert_layers
from backends.onnx.formats import owners
from backends.onnx.grouping import matrices_by_row
from backends.onnx.lstm import lstms, per_gate, unsupported
from backends.onnx.observe import calibration_batches
from backends.onnx.options import CPU, session_options
from backends.onnx.ranges import calibrated_grids
from backends.onnx.sensitive import SWITCHES, Candidate, add_switches, candidates, is_convolution
from backends.onnx.session import completed
from backends.store import RECORD, code_version, digest
from knowledge.layers import LayerTable
from knowledge.techniques.mixed import FLOAT, Form, MixedPrecision

if TYPE_CHECKING:
    from backends.context import Context

Losses = Mapping[str, Mapping[Form, float]]  # unit of layers -> form -> loss of the outputs
Change = Callable[[Form], Mapping[str, np.ndarray]]  # form -> what a run is fed so that one unit has it


@dataclass(frozen=True)
class LayerLosses:
    """Loss of the outputs by unit (`MixedPrecision.units`) and form, of units that can be narrowed."""

    losses: Losses
    runs: int  # of the model that this took; 0: they were kept


def layer_losses(technique: MixedPrecision, path: Path, context: Context) -> LayerLosses:
    """The losses of a file's layers on calibration data, read where they are kept.

    Nats of KL divergence where the outputs are logits, else squared difference as a share of the squared outputs.
    Raises InputError where there are no samples, RunFailed where the model's outputs are not finite.
    """
    store = context.store
    if store is None:
        return _measured(technique, path, context)
    data = context.data.calibration.head(SAMPLES).fingerprint()
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    forms = {name: sorted(found) for name, found in technique.forms(context.layers).items()}
    key = digest("layer losses", code_version(), content, data, forms, has_logits(context))
    with store.lock(key):
        if (known := store.record(key)) is None:
            found = _measured(technique, path, context)
            with store.writing(key) as folder:
                (folder / RECORD).write_text(json.dumps({"losses": _to_json(found.losses)}))
            return found
    return LayerLosses(_from_json(known["losses"]), runs=0)


def _to_json(losses: Losses) -> dict[str, list[list[float]]]:
    return {unit: [[*form, loss] for form, loss in found.items()] for unit, found in losses.items()}


def _from_json(losses: Mapping[str, list[list[float]]]) -> Losses:
    return {unit: {Form(int(b), int(g)): loss for b, g, loss in found} for unit, found in losses.items()}


# -- measuring -------------------------------------------------------------------------------------


def _measured(technique: MixedPrecision, path: Path, context: Context) -> LayerLosses:
    model, threads = graphs.load(path), context.workload.threads
    batches = calibration_batches(context, SAMPLES, BATCH)
    changes = dict(_weight_changes(technique, model.graph, context.layers))
    convolutions = _convolutions(technique, model.graph, context.layers)
    if convolutions:
        values = list(dict.fromkeys(graphs.input_of(node, 0) for one in convolutions.values() for node in one.nodes))
        add_switches(
            model.graph, list(convolutions.values()), calibrated_grids(model, values, batches, "minmax", threads)
        )
        for number, unit in enumerate(convolutions):
            changes[unit] = _switched(number, len(convolutions))
    session = _session(model, threads)
    always = {SWITCHES: np.zeros(len(convolutions), bool)} if convolutions else {}
    forms = {name: found for name, found in technique.forms(context.layers).items() if name in changes}
    sums = {name: dict.fromkeys(found, 0.0) for name, found in forms.items()}
    output, total, runs = session.get_outputs()[0].name, Scale(has_logits(context)), 0
    for batch in batches:
        feed = completed({**batch, **always}, session)
        exact = session.run([output], feed)[0]
        total.add(exact, batch)
        for name, losses in sums.items():
            for form in losses:
                if form != FLOAT:
                    outputs = session.run([output], {**feed, **changes[name](form)})[0]
                    losses[form] += total.loss(outputs, exact, batch)
                    runs += 1
        if total.tokens >= TOKENS:
            break
    total.check()
    return LayerLosses(
        {name: {form: total.share(loss) for form, loss in losses.items()} for name, losses in sums.items()}, runs
    )


def _session(model: ir.Model, threads: int) -> ort.InferenceSession:
    payload = ir.serde.serialize_model(model).SerializeToString()
    return ort.InferenceSession(payload, session_options(threads), providers=[CPU])


# -- one layer with fewer bits ---------------------------------------------------------------------


def _weight_changes(technique: MixedPrecision, graph: ir.Graph, layers: LayerTable) -> Iterator[tuple[str, Change]]:
    """Units whose weights a run can be fed; their initializers become inputs that may be left out."""
    units = technique.units(layers)
    unit_of = {int(row): name for name, rows in units.items() for row in rows}
    paths = {path: row for row, path in enumerate(layers.path)}
    for row, found in matrices_by_row(graph, layers).items():
        if row in unit_of and not any(matrix.obstacle for matrix in found):
            for matrix in found:
                _as_input(graph, matrix.stored)
            yield unit_of[row], _grouped(technique, found)
    for experts in expert_layers(graph):
        unit = next((unit_of.get(paths[p]) for p in owners(experts.up.name, paths)), None)
        if unit is not None:
            for stack in (experts.up, experts.down):
                _as_input(graph, stack.stored)
            yield unit, _grouped(technique, (experts.up, experts.down))
    for node in lstms(graph):
        stored = [graphs.input_of(node, slot) for slot in (1, 2)]
        unit = next((unit_of.get(paths[p]) for p in owners(graphs.name_of(stored[0]), paths)), None)
        if unit is not None and not unsupported(node):
            for value in stored:
                _as_input(graph, value)
            yield unit, _recurrent(stored)


def _as_input(graph: ir.Graph, value: ir.Value) -> None:
    if not value.is_graph_input():
        graph.inputs.append(value)


def _grouped(technique: MixedPrecision, stored: Sequence[Matrix | Stack]) -> Change:
    def change(form: Form) -> dict[str, np.ndarray]:
        return {one.name: _as_stored(one, rounded(technique, one, form).rows.numpy()) for one in stored}

    return change


def rounded(technique: MixedPrecision, stored: Matrix | Stack, form: Form) -> Blocks:
    """A matrix, or all of a stack, in a form with groups."""
    return Blocks.nearest(stored.rows, *form, symmetric=not technique.zero_bits(form.bits))


def _as_stored(stored: Matrix | Stack, rows: np.ndarray) -> np.ndarray:
    """Rows in the shape in which the float file has them."""
    if isinstance(stored, Stack):
        return rows.reshape(stored.shape)
    turned = stored.products[0].turned if stored.products else True
    return np.ascontiguousarray(rows if turned else rows.T)


def _recurrent(stored: Sequence[ir.Value]) -> Change:
    def change(form: Form) -> dict[str, np.ndarray]:
        found = {}
        for value in stored:
            codes, scales = per_gate(graphs.stored(value).transpose(0, 2, 1))  # [directions, inputs, 4 · hidden]
            wide = codes.astype(np.float32) * scales[:, None]
            found[graphs.name_of(value)] = np.ascontiguousarray(wide.transpose(0, 2, 1))
        return found

    return change


def _convolutions(technique: MixedPrecision, graph: ir.Graph, layers: LayerTable) -> dict[str, Candidate]:
    """Convolutions by unit."""
    units, paths = technique.units(layers), {path: row for row, path in enumerate(layers.path)}
    found = {}
    for candidate in candidates(graph, convolutions=True):
        if all(is_convolution(node) for node in candidate.nodes):
            found.update({path: candidate for path in owners(candidate.name, paths) if path in units})
    return found


def _switched(number: int, count: int) -> Change:
    return lambda form: {SWITCHES: np.arange(count) == number}

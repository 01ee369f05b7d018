"""Each layer in the form that an integer program over measured losses gives it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.budget import within
from backends.onnx import graph as graphs
from backends.onnx.blockwise import Blocks, Matrix
from backends.onnx.dense import dense_layers
from backends.onnx.divergence import file_loss
from backends.onnx.experts import Stack, store_stacks
from backends.onnx.formats import layer_formats, owners
from backends.onnx.grouping import store_rows
from backends.onnx.int8_static import find_sites, insert_quantizers, quantize_conv
from backends.onnx.layer_losses import Losses, layer_losses, rounded
from backends.onnx.lstm import lstms, quantize_lstms
from backends.onnx.observe import calibration_batches
from backends.onnx.ranges import calibrated_grids
from backends.onnx.sensitive import is_convolution
from backends.onnx.strip import strip_model
from backends.quantize.left_alone import left_alone
from backends.quantize.program import least_bytes, least_loss
from knowledge.files import replacing
from knowledge.layers import LayerTable
from knowledge.techniques.mixed import PER_CHANNEL, Form, MixedPrecision
from knowledge.values import Decision, LayerFormat, Refusal, RunFailed

if TYPE_CHECKING:
    from backends.context import Context


def apply(technique: MixedPrecision, path: Path, out: Path, context: Context) -> Decision:
    """Write `out` as `path` with every layer in the form chosen for it.

    The decision names what was left in float and why. Raises InputError where there is no calibration data, RunFailed
    where no choice of forms fits.
    """
    losses = layer_losses(technique, path, context).losses
    if technique.max_loss is None or not losses:
        return _written(technique, path, out, context, losses, chosen_forms(technique, context.layers, losses))
    with replacing(out) as draft:
        return _written_within(technique, path, draft, context, losses)


def _written_within(technique: MixedPrecision, path: Path, out: Path, context: Context, losses: Losses) -> Decision:
    """The smallest file found that loses `max_loss` at most, whatever the sum of its layers' losses.

    Layers were measured with exact inputs, and alone. A file may round what layers read, too.
    """
    decisions: list[Decision] = []

    def outcome(foretold: float) -> float:
        chosen = chosen_forms(technique, context.layers, losses, foretold)
        decisions.append(_written(technique, path, out, context, losses, chosen))
        return file_loss(path, out, context)

    finite = [[loss for loss in found.values() if math.isfinite(loss)] for found in losses.values()]
    least, most = (sum(extreme(found, default=0.0) for found in finite) for extreme in (min, max))
    assert technique.max_loss is not None
    what = f"{technique.id}: the widest bits at accuracy_level {technique.accuracy_level} lose"
    within(technique.max_loss, outcome, least, most, what)
    return decisions[-1]


def _written(
    technique: MixedPrecision,
    path: Path,
    out: Path,
    context: Context,
    losses: Losses,
    chosen: Mapping[str, Form],
) -> Decision:
    layers = context.layers
    units = technique.units(layers)
    forms = {str(layers.path[row]): form for name, form in chosen.items() for row in units[name]}
    rows = {path: layers.index(path) for path in forms}
    model = graphs.load(path)
    _store_channels(technique, model, forms, context)

    def stored(found: Matrix | Stack, group_size: int = 0) -> Blocks:
        return rounded(technique, found, forms[owners(found.name, rows)[0]])

    grouped = layers.keep(~technique.per_channel(layers))
    formats, obstacles = store_stacks(technique, model, grouped, stored)
    others = store_rows(technique, model, grouped, stored)
    formats, obstacles = formats | others[0], obstacles | others[1]
    graphs.drop_unused_constants(model.graph)
    strip_model(model)
    graphs.save(model, out)
    formats |= {path: form for path, form in layer_formats(model, layers).items() if forms.get(path) == PER_CHANNEL}
    skipped = (*left_alone(technique, grouped, formats, obstacles), *_left_wide(technique, layers, losses, formats))
    return Decision(technique=technique.id, formats=dict(sorted(formats.items())), skipped=skipped)


def chosen_forms(
    technique: MixedPrecision, layers: LayerTable, losses: Losses, max_loss: float | None = None
) -> dict[str, Form]:
    """The form of every unit that was measured: the least loss within the bytes that the technique expects to take.

    With `max_loss` the fewest bytes whose sum of losses is within it. Raises RunFailed where no choice fits.
    """
    if not losses:
        return {}
    sizes, expected = technique.forms(layers), technique.expected_bytes(layers)
    forms = {name: sorted(found) for name, found in losses.items()}
    lost = [np.array([losses[name][form] for form in found]) for name, found in forms.items()]
    taken = [np.array([sizes[name][form] for form in found]) for name, found in forms.items()]
    try:
        if max_loss is None:
            found = least_loss(lost, taken, sum(expected[name] for name in forms))
        else:
            found = least_bytes(lost, taken, max_loss)
    except RunFailed as error:
        raise RunFailed(f"{technique.id}: {error}") from None
    return {name: forms[name][place] for name, place in zip(forms, found, strict=True)}


def _store_channels(technique: MixedPrecision, model: ir.Model, forms: Mapping[str, Form], context: Context) -> None:
    """Store the convolutions and recurrent layers that are to have 8 bits, in place."""
    graph = model.graph
    chosen = {path: row for row, path in enumerate(context.layers.path) if forms.get(path) == PER_CHANNEL}

    def narrow(node: ir.Node) -> bool:
        return bool(owners(graphs.name_of(graphs.input_of(node, 1)), chosen))

    quantize_lstms(graph, technique.id, [node for node in lstms(graph) if narrow(node)])
    convolutions = [node for node in graph if is_convolution(node)]
    if not any(narrow(node) for node in convolutions):
        return
    kept = {graphs.name_of(graphs.input_of(node, 1)) for node in convolutions if not narrow(node)}
    sites = find_sites(graph, kept | {layer.name for layer in dense_layers(graph)})
    grids = calibrated_grids(model, sites.values, calibration_batches(context), "minmax", context.workload.threads)
    insert_quantizers(graph, sites, grids)
    for node in sites.convs:
        quantize_conv(node, grids)


def _left_wide(
    technique: MixedPrecision, layers: LayerTable, losses: Losses, formats: Mapping[str, LayerFormat]
) -> Iterator[Refusal]:
    """One refusal for each convolution or recurrent layer that stays in float."""
    channels = technique.per_channel(layers)
    for name, rows in technique.units(layers).items():
        if not channels[rows[0]] or all(str(layers.path[row]) in formats for row in rows):
            continue
        if name in losses:
            observed = (
                f"{name}: 8 bits there alone cost {losses[name][PER_CHANNEL]:.2g}, more for their bytes than elsewhere"
            )
            yield _refusal(technique, "mixed-sensitive-layer", observed, f"a larger share than {technique.share:g}")
        else:
            required = "a convolution, or an LSTM of the plain form, with stored weights"
            yield _refusal(technique, "mixed-no-form", f"{name} is computed in another way", required)


def _refusal(technique: MixedPrecision, rule: str, observed: str, required: str) -> Refusal:
    return Refusal(technique=technique.id, rule=rule, observed=observed, required=required)

"""Changing the hidden size of a recurrent model's table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from knowledge.layers import LayerTable


def hidden_scaled(layers: LayerTable, keep: Callable[[int], int]) -> LayerTable:
    """The table with another hidden size in every recurrent layer; inputs from outside and the head's outputs stay.

    A layer's gate rows are gates × hidden high. Whatever reads hidden states (the next layer, the head), of one
    direction or of both, gets narrower with them.
    """
    recurrent = layers.kind == "lstm"
    hidden_rows = recurrent & (layers.role == "hidden")
    if not hidden_rows.any():
        return layers
    hidden = int(layers.inputs[hidden_rows][0])
    new = keep(hidden)
    both = (
        2 * hidden
        if layers.choose(lambda p: p.endswith("_reverse")).any() or (layers.copies[hidden_rows] > 1).any()
        else hidden
    )
    first = recurrent & (layers.role == "input") & layers.choose(lambda p: "_l0" in p or ".weight_" not in p)
    readers = (hidden_rows | (recurrent & ~first)) | (
        (layers.kind == "linear") & np.isin(layers.inputs, (hidden, both))
    )
    follows = readers & np.isin(layers.inputs, (hidden, both))
    gates = layers.outputs // hidden
    changed = layers.change(recurrent, outputs=gates[recurrent] * new)
    changed = changed.change(follows, inputs=layers.inputs[follows] // hidden * new)
    projections = (
        (layers.kind == "linear") & (layers.role != "head") & np.isin(layers.outputs, (hidden, both)) & follows
    )
    changed = changed.change(projections, outputs=layers.outputs[projections] // hidden * new)
    widened = recurrent | projections
    changed = changed.change(widened, bias=layers.bias[widened] * changed.outputs[widened] // layers.outputs[widened])
    everything = np.ones(len(layers), dtype=bool)
    changed = changed.change(everything, density=1.0, pattern="dense", rank=0)
    return changed.with_info(hidden_size=new) if layers.info.hidden_size == hidden else changed

"""Removing what a file carries beside its computation: it can double a small one, and hides what compression gains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from backends.onnx import graph as graphs

PASSES = (
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    RemoveInitializersFromInputsPass(),
    RemoveUnusedNodesPass(),
    RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
    RemoveUnusedOpsetsPass(),
    ClearMetadataAndDocStringPass(),
)
PRODUCER = "advisor"


def strip(path: Path) -> None:
    """Rewrite a file without metadata, doc strings, value info, node names and unused parts.

    Initializers keep their names, intermediate values get short ones, equal small constants are stored once.
    """
    model = graphs.load(path)
    strip_model(model)
    graphs.save(model, path)


def strip_model(model: ir.Model) -> None:
    """The same, on a model in memory."""
    for step in PASSES:
        step(model)
    model.producer_name, model.producer_version, model.model_version = PRODUCER, None, None
    model.domain, model.graph.name = None, "g"
    merge_small_constants(model.graph)
    shorten_names(model.graph)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None


def merge_small_constants(graph: ir.Graph, largest_bytes: int = 64) -> None:
    """Store equal constants once: exporters repeat axes and shapes. Weights are larger and stay as they are."""
    first: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes > largest_bytes or value.is_graph_output() or is_parameter(name):
            continue
        key = (tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())
        if (kept := first.setdefault(key, value)) is not value:
            value.replace_all_uses_with(kept)
            del graph.initializers[name]


def is_parameter(name: str | None) -> bool:
    """Whether an initializer's name is a path of the model (exporters give their own constants undotted names)."""
    return name is not None and "." in name


def shorten_names(graph: ir.Graph) -> None:
    """Number everything but the inputs, the outputs and the parameters, in graph order."""
    fixed = {v.name for v in (*graph.inputs, *graph.outputs)}
    constants = [v for v in graph.initializers.values() if not is_parameter(v.name) and v.name not in fixed]
    parameters = {v.name for v in graph.initializers.values()} - {v.name for v in constants}
    counter = _names("c", fixed | parameters)
    renamed = {id(v): next(counter) for v in constants}
    counter = _names("v", fixed | parameters | set(renamed.values()))
    computed = []
    for node in graph.all_nodes():
        node.name = None
        computed += [v for v in node.outputs if v.name != "" and not v.is_graph_output()]
    # two steps: a new name may still belong to a value that is renamed later
    for i, value in enumerate((*constants, *computed)):
        value.name = f"__{i}"
    for value in constants:
        value.name = renamed[id(value)]
        if value.const_value is not None:
            value.const_value.name = value.name
    for value in computed:
        value.name = next(counter)


def _names(prefix: str, taken: set[str | None]) -> Iterator[str]:
    count = 0
    while True:
        if (name := f"{prefix}{count}") not in taken:
            yield name
        count += 1

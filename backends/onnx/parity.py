"""Finding the first module at which an exported graph and torch part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor

from backends.onnx.naming import scope
from backends.onnx.options import CPU, session_options
from backends.onnx.session import completed

if TYPE_CHECKING:
    from backends.models import LoadedModel

Labels = dict[str, ir.Value]  # module path -> the value that the module returns


def label_values(model: ir.Model, prefix: str) -> Labels:
    """For each module path the output of its last node; read before the exporter's metadata is stripped."""
    found: Labels = {}
    for node in model.graph:
        path = scope(node)
        if path.startswith(prefix) and (path := path.removeprefix(prefix)):
            found[path] = node.outputs[0]
    return found


def where_they_part(
    model: LoadedModel, graph: ir.Model, labels: Labels, batch: Mapping[str, np.ndarray], tolerance: float
) -> str:
    """One clause naming the first module whose output differs, in the order in which torch runs them."""
    got = _onnx_outputs(graph, labels, batch)
    with torch.no_grad(), _recording(model, labels) as expected:
        model.forward({name: torch.from_numpy(array) for name, array in batch.items()})
    for path, tensor in expected.items():
        array = tensor.detach().cpu().numpy()
        if path not in got or got[path].shape != array.shape:
            continue
        difference = float(np.abs(array - got[path]).max(initial=0) / max(1.0, float(np.abs(array).max(initial=0))))
        if not difference <= tolerance:
            return f"the first module that differs is {path!r} (by {difference:.2g})"
    return "no single module differs: look at the operations between them"


def _onnx_outputs(graph: ir.Model, labels: Labels, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The labeled values, computed by ONNX Runtime."""
    original = list(graph.graph.outputs)
    present = {p: v for p, v in labels.items() if v.producer() is not None and v.graph is graph.graph}
    if not present:  # no names would mean all outputs
        return {}
    extra = {v.name: v for v in present.values() if v not in original}
    graph.graph.outputs.extend(extra.values())
    try:
        session = ort.InferenceSession(
            ir.serde.serialize_model(graph).SerializeToString(), session_options(1), providers=[CPU]
        )
    finally:
        while len(graph.graph.outputs) > len(original):
            graph.graph.outputs.pop()
    names = [value.name for value in present.values()]
    arrays = session.run(names, completed(batch, session))
    return dict(zip(present, arrays, strict=True))


@contextmanager
def _recording(model: LoadedModel, labels: Labels) -> Iterator[dict[str, Tensor]]:
    """Outputs of the labeled modules as torch runs them, in order."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                found[path] = first

        return hook

    handles = [part.register_forward_hook(keep(p)) for p, part in model.module.named_modules() if p in labels]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()

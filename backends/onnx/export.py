"""One torch model to one ONNX file: dynamic axes stay dynamic, weights keep their names, numbers agree."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from torch import nn

from backends.onnx import graph as graphs
from backends.onnx.cache import Cached, cached, no_cache
from backends.onnx.export_checks import check_axes, check_cache, check_parity
from backends.onnx.functional import traced_once
from backends.onnx.naming import name_by_parameters
from backends.onnx.parity import label_values
from backends.onnx.recurrent import replace_lstms
from backends.onnx.shared_heads import multiply_shared_heads
from backends.onnx.shortcuts import shortcuts
from backends.onnx.strip import strip_model
from backends.onnx.trace import Form, traced
from knowledge.files import copy_file
from knowledge.values import Refusal, RunFailed, Workload

if TYPE_CHECKING:
    from backends.models import LoadedModel

TRACED = (2, 12)  # batch and sequence of the traced example: the exporter specializes on 0 and 1
UNSEEN = ((1, 9), (3, 7))
OUTPUT = "output"


def export(model: LoadedModel, path: Path, workload: Workload) -> tuple[Refusal, ...]:
    """Write the model as one ONNX file that takes any batch size (and sequence length, where its inputs have one).

    Batch norms are folded into convolutions, recurrent layers become the LSTM operator, heads that queries share are
    not copied for each of them, initializers are called by their parameters' paths, and nothing of the exporter's
    metadata is left. The same model gives the same bytes. A causal model gets a key-value cache; where that cannot be,
    the one refusal that is returned says why. The model is traced on the CPU wherever it is, so that the file is the
    same, and goes back afterwards.
    Raises RunFailed where the exporter fails or freezes an axis, and where ONNX Runtime's outputs at shapes it has not
    seen (the workload's among them) differ from torch's by more than 1e-4; the error names the first module that does.
    """
    with _on_the_cpu(model):
        return _export(model, path, workload)


def _export(model: LoadedModel, path: Path, workload: Workload) -> tuple[Refusal, ...]:
    if model.info.task != "causal-lm":
        _write(model, _plain(model), path, workload)
        return ()
    wrapper = cached(model)
    if isinstance(wrapper, Cached):
        try:
            _write(model, Form(wrapper.eval(), "module.", wrapper.inputs, wrapper.outputs), path, workload)
            return ()
        except RunFailed as error:
            reason = f"that fails ({error})"
    else:
        reason = wrapper
    _write(model, _plain(model), path, workload)
    return (no_cache(reason),)


@contextlib.contextmanager
def _on_the_cpu(model: LoadedModel) -> Iterator[None]:
    device = model.device
    model.module.to("cpu")
    try:
        yield
    finally:
        model.module.to(device)


def _write(model: LoadedModel, form: Form, path: Path, workload: Workload) -> None:
    """Trace once where that suffices; a second time, and by no shortcuts, where it does not, or comes to nothing."""
    with shortcuts(), traced_once() as spared:
        try:
            return _write_traced(model, form, path, workload)
        except RunFailed:
            if not spared:
                raise
    return _write_traced(model, form, path, workload)


def _write_traced(model: LoadedModel, form: Form, path: Path, workload: Workload) -> None:
    """Trace, name, strip, and compare before the file is in place."""
    graph = traced(form, _example(model, workload, TRACED))
    name_by_parameters(graph, model.module, form.prefix)
    _name_axes(graph, form)
    multiply_shared_heads(graph.graph)
    labels = label_values(graph, form.prefix)
    strip_model(graph)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.onnx"
        graphs.save(graph, draft)
        check_axes(draft, form.inputs)
        batches = [_example(model, workload, shape) for shape in UNSEEN]
        batches.append(model.example(workload))
        check_parity(model, draft, batches, graph, labels)
        if form.past:
            check_cache(draft, batches[1])
        copy_file(draft, path)


def _plain(model: LoadedModel) -> Form:
    """The model as it is called, with its first output."""
    wrapper = model.exportable()
    prefix = next((name for name, part in wrapper.named_modules() if part is model.module), "")
    if any(isinstance(part, nn.LSTM) for part in wrapper.modules()):
        wrapper = copy.deepcopy(wrapper)
        replace_lstms(wrapper)
    return Form(wrapper.eval(), f"{prefix}." if prefix else "", model.inputs, (OUTPUT,))


def _example(model: LoadedModel, workload: Workload, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """A batch whose size and sequence length differ from the workload's; the first row is padded where it can be."""
    batch, length = shape
    dynamic = any(axis != 0 and isinstance(size, str) for spec in model.inputs for axis, size in enumerate(spec.shape))
    if dynamic and workload.seq_len:
        length = max(2, min(length, workload.seq_len))
    other = workload.model_copy(update={"batch": batch} | ({"seq_len": length} if dynamic else {}))
    example = model.example(other, seed=batch)
    if "attention_mask" in example and batch > 2 and length > 3:
        example["attention_mask"][0, -2:] = 0
    return example


def _name_axes(model: ir.Model, form: Form) -> None:
    """Call dynamic axes as the inputs do ("batch", "sequence") in place of the tracer's symbols."""
    symbols: dict[str, str] = {}
    for value, spec in zip(model.graph.inputs, form.inputs, strict=True):
        assert value.shape is not None
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and isinstance(dim := value.shape[axis], ir.SymbolicDim):
                symbols[str(dim.value)] = size
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            dims = [symbols.get(str(d.value), d.value) if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
            value.shape = ir.Shape(dims)
    for value, spec in zip(model.graph.outputs[1:], form.past, strict=True):
        value.shape = ir.Shape(["total" if size == "past" else size for size in spec.shape])

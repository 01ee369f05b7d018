"""One torch model to one ONNX file: dynamic axes stay dynamic, weights keep their names, numbers agree."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from backends.onnx import graph as graphs
from backends.onnx.naming import name_by_parameters
from backends.onnx.parity import Labels, label_values, where_they_part
from backends.onnx.recurrent import replace_lstms
from backends.onnx.session import open_session, session_predictor
from backends.onnx.strip import strip_model
from knowledge.values import RunFailed, Workload

if TYPE_CHECKING:
    from backends.models import InputSpec, LoadedModel

TOLERANCE = 1e-4  # of the largest output, or of 1
TRACED = (2, 12)  # batch and sequence of the traced example: the exporter specializes on 0 and 1
UNSEEN = ((1, 9), (3, 7))
OUTPUT = "output"
CHATTY = ("torch.onnx", "torch.onnx._internal.exporter._registration", "torch.export", "onnxscript")


def export(model: LoadedModel, path: Path, workload: Workload) -> None:
    """Write the model as one ONNX file that takes any batch size (and sequence length, where its inputs have one).

    Batch norms are folded into convolutions, recurrent layers become the LSTM operator, initializers are called by
    their parameters' paths, and nothing of the exporter's metadata is left. The same model gives the same bytes.
    Raises RunFailed where the exporter fails or freezes an axis, and where ONNX Runtime's outputs at shapes it has not
    seen (the workload's among them) differ from torch's by more than 1e-4; the error names the first module that does.
    """
    wrapper, prefix = _wrapper(model)
    traced = _example(model, workload, TRACED)
    graph = _traced(wrapper, model.inputs, traced)
    name_by_parameters(graph, model.module, prefix)
    _name_axes(graph, model.inputs)
    labels = label_values(graph, prefix)
    strip_model(graph)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.onnx"
        graphs.save(graph, draft)
        check_axes(draft, model.inputs)
        batches = [_example(model, workload, shape) for shape in UNSEEN]
        batches.append(model.example(workload))
        check_parity(model, draft, batches, graph, labels)
    graphs.save(graph, path)


def _wrapper(model: LoadedModel) -> tuple[nn.Module, str]:
    """What is traced, and the path at which it holds the model's own module."""
    wrapper = model.exportable()
    prefix = next((name for name, part in wrapper.named_modules() if part is model.module), "")
    if any(isinstance(part, nn.LSTM) for part in wrapper.modules()):
        wrapper = copy.deepcopy(wrapper)
        replace_lstms(wrapper)
    return wrapper.eval(), f"{prefix}." if prefix else ""


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


def _traced(wrapper: nn.Module, inputs: Sequence[InputSpec], example: Mapping[str, np.ndarray]) -> ir.Model:
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs
    )
    kinds = [parameter.kind for parameter in inspect.signature(wrapper.forward).parameters.values()]
    shapes = (dynamic,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else dynamic  # torch nests those of *args
    device = next((p.device for p in wrapper.parameters()), torch.device("cpu"))
    args = tuple(torch.from_numpy(example[spec.name]).to(device) for spec in inputs)
    with _silence(), torch.no_grad():
        try:
            program = torch.onnx.export(
                wrapper,
                args,
                input_names=[spec.name for spec in inputs],
                output_names=[OUTPUT],
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises what its many parts raise
            raise RunFailed(f"export: {_cause(error)}") from error
    assert program is not None
    return program.model


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's chatter off the user's terminal."""
    with warnings.catch_warnings(), graphs.quiet(*CHATTY):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield


def _cause(error: BaseException) -> str:
    """The innermost reason of an exporter's error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "inferred a static shape" in line or "No ONNX function found" in line]
    return (telling or lines or [type(error).__name__])[0][:300]


def _name_axes(model: ir.Model, inputs: Sequence[InputSpec]) -> None:
    """Call dynamic axes as the inputs do ("batch", "sequence") in place of the tracer's symbols."""
    symbols: dict[str, str] = {}
    for value, spec in zip(model.graph.inputs, inputs, strict=True):
        assert value.shape is not None
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and isinstance(dim := value.shape[axis], ir.SymbolicDim):
                symbols[str(dim.value)] = size
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            dims = [symbols.get(str(d.value), d.value) if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
            value.shape = ir.Shape(dims)


def check_axes(path: Path, inputs: Sequence[InputSpec]) -> None:
    """Read the inputs back from a session; raises RunFailed naming an axis that the exporter froze."""
    found = {spec.name: spec.shape for spec in open_session(path, 1).get_inputs()}
    for spec in inputs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and isinstance(found[spec.name][axis], int):
                raise RunFailed(
                    f"export: axis {size!r} of input {spec.name!r} is frozen at {found[spec.name][axis]}: "
                    "the model's code reads that size as a number"
                )


def check_parity(
    model: LoadedModel, path: Path, batches: Sequence[Mapping[str, np.ndarray]], graph: ir.Model, labels: Labels
) -> None:
    """Compare ONNX Runtime with torch on each batch; raises RunFailed saying where they part."""
    predict = session_predictor(open_session(path, min(os.cpu_count() or 1, 4)))
    for batch in batches:
        got = predict(dict(batch))
        with torch.no_grad():
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            expected = model.forward(tensors).detach().cpu().numpy()
        difference = _difference(expected, got)
        if not difference <= TOLERANCE:  # NaN too
            shapes = ", ".join(f"{spec.name} {list(batch[spec.name].shape)}" for spec in model.inputs)
            raise RunFailed(
                f"export: ONNX Runtime and torch differ by {difference:.2g} of the output's scale at {shapes}; "
                f"{where_they_part(model, graph, labels, batch, TOLERANCE)}"
            )


def _difference(expected: np.ndarray, got: np.ndarray) -> float:
    """Largest difference in units of the largest expected output, or of 1."""
    if expected.shape != got.shape:
        return float("inf")
    return float(np.abs(expected - got).max(initial=0) / max(1.0, float(np.abs(expected).max(initial=0))))

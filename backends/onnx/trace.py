"""A torch module as a graph of ONNX operators, its dynamic axes found by a trace of one example."""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from backends.onnx import graph as graphs
from backends.onnx.cache_names import PAST
from knowledge.values import RunFailed

if TYPE_CHECKING:
    from backends.models import InputSpec

CHATTY = ("torch.onnx", "torch.onnx._internal.exporter._registration", "torch.export", "onnxscript")


@dataclass(frozen=True)
class Form:
    """What is traced: the module, the path at which it holds the model's own (with a dot), its inputs and outputs."""

    wrapper: nn.Module
    prefix: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]

    @property
    def past(self) -> list[InputSpec]:
        """Keys and values, where it has a cache."""
        return [spec for spec in self.inputs if spec.name.startswith(PAST)]


def traced(form: Form, example: Mapping[str, np.ndarray]) -> ir.Model:
    """The module's graph, for any sizes of the axes that its inputs name. Raises RunFailed where the exporter fails."""
    from torch._dynamo import config  # a second of imports, spared where every file comes from the store

    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in form.inputs
    )
    kinds = [parameter.kind for parameter in inspect.signature(form.wrapper.forward).parameters.values()]
    shapes = (dynamic,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else dynamic  # torch nests those of *args
    example = _with_past(form, example) if form.past else example
    args = tuple(torch.from_numpy(example[spec.name]) for spec in form.inputs)
    # with a cache, operators on its many symbols are sooner made again than found among those kept
    kept = config.patch(fake_tensor_cache_enabled=not form.past)
    with _silence(), torch.no_grad(), kept:
        try:
            program = torch.onnx.export(
                form.wrapper,
                args,
                input_names=[spec.name for spec in form.inputs],
                output_names=list(form.outputs),
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises what its many parts raise
            raise RunFailed(f"export: {_cause(error)}") from error
    assert program is not None
    return program.model


def _with_past(form: Form, example: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The example behind some cached positions, of a number that is no other axis's."""
    batch, length = example[form.inputs[0].name].shape[:2]
    past = length + 3
    rng = np.random.default_rng(0)
    full = {spec.name: rng.standard_normal(spec.sizes(batch, past)).astype(np.float32) for spec in form.past}
    reaching = [spec.name for spec in form.inputs if spec.shape[1:] == ("total",)]
    return {**example, **full} | {name: np.ones((batch, past + length), np.int64) for name in reaching}


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

"""Whether an exported file is the model: its axes are dynamic, its numbers are torch's, its cache changes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from backends.onnx.decoding import read_in_two_parts
from backends.onnx.parity import Labels, where_they_part
from backends.onnx.session import open_session, session_predictor
from knowledge.values import RunFailed

if TYPE_CHECKING:
    from backends.models import InputSpec, LoadedModel

TOLERANCE = 1e-4  # of the largest output, or of 1


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
        found = difference(expected, got, batch.get("attention_mask"))
        if not found <= TOLERANCE:  # NaN too
            shapes = ", ".join(f"{spec.name} {list(batch[spec.name].shape)}" for spec in model.inputs)
            raise RunFailed(
                f"export: ONNX Runtime and torch differ by {found:.2g} of the output's scale at {shapes}; "
                f"{where_they_part(model, graph, labels, batch, TOLERANCE)}"
            )


def check_cache(path: Path, batch: Mapping[str, np.ndarray]) -> None:
    """Raise RunFailed unless a text read in two parts, the first one cached, gives the logits of the whole."""
    session = open_session(path, min(os.cpu_count() or 1, 4))
    whole = session_predictor(session)(dict(batch))
    found = difference(whole, read_in_two_parts(session, batch), batch.get("attention_mask"))
    if not found <= TOLERANCE:
        raise RunFailed(f"export: with a cache, the logits differ by {found:.2g} of their scale")


def difference(expected: np.ndarray, got: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Largest difference in units of the largest expected output, or of 1.

    Of outputs for each token, those that the mask calls padding do not count: models differ in what they make of it
    (OPT gives all padding one position), and nothing reads it. mask: [batch, time]
    """
    if expected.shape != got.shape:
        return float("inf")
    if mask is not None and expected.ndim == 3 and expected.shape[:2] == mask.shape:
        expected, got = (outputs[mask.astype(bool)] for outputs in (expected, got))
    return float(np.abs(expected - got).max(initial=0) / max(1.0, float(np.abs(expected).max(initial=0))))

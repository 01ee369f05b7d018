"""What flows through a graph on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from backends.onnx import graph as graphs
from backends.onnx.options import CPU, session_options
from backends.onnx.session import Batch, completed
from knowledge.values import InputError

if TYPE_CHECKING:
    from backends.context import Context

State = TypeVar("State")

SAMPLES = 128
BATCH = 8
VALUES_AT_ONCE = 48  # bounds the activations in memory


def calibration_batches(context: Context, samples: int = SAMPLES, batch: int = BATCH) -> list[Batch]:
    """The first calibration samples in small batches; raises InputError where there are none."""
    split = context.data.calibration
    if not len(split):
        raise InputError("calibration-data", 0, "no samples", "give some with --calibration-data")
    names = [spec.name for spec in context.inputs]
    return [{name: found[name] for name in names} for found in split.head(samples).batches(batch)]


def observe(
    model: ir.Model,
    values: Sequence[ir.Value],
    batches: Iterable[Batch],
    fold: Callable[[ir.Value, State | None, np.ndarray], State],
    threads: int = 2,
) -> dict[ir.Value, State]:
    """Run the batches and fold every array that each value takes: state = fold(value, state, array)."""
    states: dict[ir.Value, State] = {}
    batches = list(batches)
    for start in range(0, len(values), VALUES_AT_ONCE):
        chunk = list(values[start : start + VALUES_AT_ONCE])
        for arrays in _activations(model, chunk, batches, threads):
            for value, array in zip(chunk, arrays, strict=True):
                states[value] = fold(value, states.get(value), array)
    return states


def _activations(
    model: ir.Model, values: Sequence[ir.Value], batches: Sequence[Batch], threads: int
) -> Iterator[list[np.ndarray]]:
    outputs = model.graph.outputs
    count, known = len(outputs), {v.name for v in outputs} | {v.name for v in model.graph.inputs}
    outputs.extend(v for v in values if v.name not in known)
    try:
        payload = ir.serde.serialize_model(model).SerializeToString()
    finally:
        while len(outputs) > count:
            outputs.pop()
    session = ort.InferenceSession(payload, session_options(threads), providers=[CPU])
    given = {v.name for v in model.graph.inputs}
    fetched = [v.name for v in values if v.name not in given]
    for batch in batches:
        feed = completed(batch, session)
        found = dict(zip(fetched, session.run(fetched, feed), strict=True)) if fetched else {}
        yield [found[v.name] if v.name in found else feed[graphs.name_of(v)] for v in values]


@dataclass(frozen=True)
class Channels:
    """What an activation does per channel of its last axis."""

    largest: np.ndarray  # max |x|
    squares: np.ndarray  # sum of x²
    count: int

    @property
    def mean_square(self) -> np.ndarray:
        return self.squares / self.count


def per_channel(value: ir.Value, state: Channels | None, array: np.ndarray) -> Channels:
    """Extremes and energies over everything but the last axis."""
    rows = array.reshape(-1, array.shape[-1])
    found = Channels(np.abs(rows).max(0), np.einsum("ij,ij->j", rows, rows, dtype=np.float64), len(rows))
    if state is None:
        return found
    largest = np.maximum(state.largest, found.largest)
    return Channels(largest, state.squares + found.squares, state.count + found.count)


def extremes(value: ir.Value, state: tuple[float, float] | None, array: np.ndarray) -> tuple[float, float]:
    """Smallest and largest number."""
    low, high = float(array.min()), float(array.max())
    return (low, high) if state is None else (min(low, state[0]), max(high, state[1]))

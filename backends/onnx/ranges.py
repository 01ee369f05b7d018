"""Ranges of activations on calibration data, and the 8-bit grids they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from backends.onnx.observe import extremes, observe
from backends.onnx.session import Batch

BINS = 4096
TAIL = 1e-4  # share of the numbers that a percentile range may clip, both ends together
SMALLEST_RANGE = 1e-6


@dataclass(frozen=True)
class Grid:
    """Unsigned 8-bit codes: x ≈ (code − zero) · scale."""

    scale: np.float32
    zero: np.uint8


def grid(low: float, high: float) -> Grid:
    """The finest grid that covers [low, high] and holds 0 exactly.

    >>> grid(-1.0, 1.55)
    Grid(scale=np.float32(0.01), zero=np.uint8(100))
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(high - low, SMALLEST_RANGE) / 255)
    return Grid(scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255)))


def calibrated_grids(
    model: ir.Model, values: Sequence[ir.Value], batches: Sequence[Batch], method: str, threads: int
) -> dict[ir.Value, Grid]:
    """A grid for each value from what it takes on the batches.

    "minmax" covers everything seen; "percentile" clips one number in ten thousand, half at each end.
    """
    ranges = observe(model, values, batches, extremes, threads)
    if method == "percentile":
        ranges = _clipped(model, ranges, batches, threads)
    return {value: grid(*found) for value, found in ranges.items()}


def _clipped(
    model: ir.Model, ranges: dict[ir.Value, tuple[float, float]], batches: Sequence[Batch], threads: int
) -> dict[ir.Value, tuple[float, float]]:
    """A second pass over the data: histograms within the known extremes, so that no activation is kept."""
    edges = {v: np.linspace(low, max(high, low + SMALLEST_RANGE), BINS + 1) for v, (low, high) in ranges.items()}

    def count(value: ir.Value, state: np.ndarray | None, array: np.ndarray) -> np.ndarray:
        found = np.histogram(array, edges[value])[0]
        return found if state is None else state + found

    counts = observe(model, list(ranges), batches, count, threads)
    return {value: _percentiles(counts[value], edges[value]) for value in ranges}


def _percentiles(counts: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """Edges between which all but TAIL of the numbers lie.

    >>> _percentiles(np.array([1, 99_998, 1]), np.array([-9.0, -1.0, 1.0, 9.0]))
    (-1.0, 1.0)
    """
    below = np.cumsum(counts) / counts.sum()
    first = int(np.searchsorted(below, TAIL / 2, side="right"))
    last = int(np.searchsorted(below, 1 - TAIL / 2, side="left"))
    return float(edges[first]), float(edges[last + 1])

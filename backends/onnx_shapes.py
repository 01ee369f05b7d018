"""Shapes of a graph's values at one sample of a workload."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from backends.onnx.cache_names import PAST
from backends.onnx.graph import MICROSOFT
from backends.onnx_stored import GROUPED, grouped_sizes
from knowledge.values import Workload

DEFAULT_SEQ_LEN = 128
DEFAULT_SIDE = 224


def infer(model: ir.Model, workload: Workload) -> dict[str, Any]:
    """Give every free axis of the inputs the size of one sample and infer shapes, in place.

    Returns what the sample is: `seq_len`, or `image_size`.
    """
    declared = [(v, v.shape) for v in model.graph.outputs]
    sample: dict[str, Any] = {}
    for value in model.graph.inputs:
        if value.shape is not None and not value.is_initializer():
            sizes = _sizes(value, workload)
            value.shape = ir.Shape(sizes)
            if _is_past(value):
                continue
            if len(sizes) == 4:
                sample["image_size"] = tuple(sizes[1:])
            elif len(sizes) in (2, 3):
                sample.setdefault("seq_len", sizes[1])
    for value in model.graph.outputs:
        value.shape = None
    try:
        with _standard_operators(model.graph):
            ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    except (ir.passes.PassError, RuntimeError, ValueError):
        sample["partial"] = True  # positions fall back to the sample's length
    for value, shape in declared:
        value.shape = value.shape or shape
    return sample


@contextmanager
def _standard_operators(graph: ir.Graph) -> Iterator[None]:
    """While open, products and lookups in groups are standard ones, whose shapes inference knows."""
    before = []
    for node in graph:
        if node.domain != MICROSOFT or (sizes := grouped_sizes(node)) is None:
            continue
        product = node.op_type in GROUPED
        shape = ir.Shape(reversed(sizes) if product else sizes)
        weight = ir.Value(name=f"weight of {node.outputs[0].name}", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        before.append((node, node.op_type, list(node.inputs), weight))
        graph.inputs.append(weight)
        node.domain, node.op_type = "", "MatMul" if product else "Gather"
        node.resize_inputs(2)
        node.replace_input_with(1 if product else 0, weight)
    try:
        yield
    finally:
        for node, kind, inputs, weight in before:
            node.domain, node.op_type = MICROSOFT, kind
            node.resize_inputs(len(inputs))
            for place, value in enumerate(inputs):
                node.replace_input_with(place, value)
            graph.inputs.remove(weight)


def known_sizes(value: ir.Value | None) -> list[int]:
    """Inferred sizes; empty where any is unknown. An unknown first axis of three or more is the batch of one sample."""
    if value is None or value.shape is None:
        return []
    sizes = list(value.shape)
    if len(sizes) > 2 and not isinstance(sizes[0], int):
        sizes[0] = 1  # of two axes, the first may be batch × tokens
    return [int(n) for n in sizes] if all(isinstance(n, int) for n in sizes) else []  # type: ignore[arg-type]


def _is_past(value: ir.Value) -> bool:
    """Whether an input is part of a key-value cache, which is empty before the first token."""
    return (value.name or "").startswith(PAST)


def _sizes(value: ir.Value, workload: Workload) -> list[int]:
    assert value.shape is not None
    if _is_past(value):
        return [1, *(size if isinstance(size, int) else 0 for size in list(value.shape)[1:])]
    rank = len(value.shape)
    free = [1, *[workload.seq_len or DEFAULT_SEQ_LEN] * (rank - 1)]
    if rank == 4:
        free = [1, *(workload.image_size or (3, DEFAULT_SIDE, DEFAULT_SIDE))]
    return [1 if axis == 0 else size if isinstance(size, int) else free[axis] for axis, size in enumerate(value.shape)]


def last_size(value: ir.Value | None) -> int | None:
    """Size of the last axis, where it is known."""
    last = value.shape[-1] if value is not None and value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else None

"""Grouped-query attention without its copies: the queries of a group are multiplied with the heads that they share.

    k [batch, groups, n, width] ─ Unsqueeze ─ Expand ─ Reshape ─ [batch, heads, n, width]   a copy for each query head
    q [batch, heads, t, width] ──────────────────── MatMul ──────┘

An export copies all cached keys and values with every token. The queries of a group as rows of one matrix,
[batch, groups, heads / groups · t, width], give the same sums without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from backends.onnx import graph as graphs

TURNED = [0, 1, 3, 2]  # keys, as the scores read them
Size = int | ir.SymbolicDim


@dataclass(frozen=True)
class Shared:
    """Heads that several queries read."""

    value: ir.Value  # [batch, groups, n, width]
    turned: bool  # multiplied as [batch, groups, width, n]
    groups: int
    heads: int


def multiply_shared_heads(graph: ir.Graph) -> int:
    """Rewrite every product with copied heads as one with the heads themselves; returns how many there were.

    Needs the shapes that the exporter writes: a product stays as it is where they do not tell that it is one of these.
    """
    found = 0
    for node in list(graph):
        if node.op_type == "MatMul" and (shared := _shared(node)) is not None:
            _multiply(node, shared)
            found += 1
    return found


def _shared(product: ir.Node) -> Shared | None:
    """The heads behind a product's right side; None where they are not copied, or not just for its queries."""
    queries, right = product.inputs
    transpose = graphs.made_by(right, "Transpose")
    if transpose is not None:
        perm = transpose.attributes.get("perm")
        if perm is None or list(perm.as_ints()) != TURNED:
            return None
        right = transpose.inputs[0]
    copied = _copied(right)
    rows = _sizes(queries)
    if copied is None or len(rows) != 4:
        return None
    value, batch, groups, heads = copied
    return Shared(value, transpose is not None, groups, heads) if rows[:2] == [batch, heads] else None


def _copied(right: ir.Value | None) -> tuple[ir.Value, Size, int, int] | None:
    """Heads that are copied, each as often as another: the value, batch, heads before and heads after."""
    flat = graphs.made_by(right, "Reshape")
    expand = graphs.made_by(flat.inputs[0], "Expand") if flat is not None else None
    unsqueeze = graphs.made_by(expand.inputs[0], "Unsqueeze") if expand is not None else None
    if flat is None or expand is None or unsqueeze is None:
        return None
    value = graphs.input_of(unsqueeze, 0)
    single, copied, joined = (_sizes(node.outputs[0]) for node in (unsqueeze, expand, flat))
    if len(_sizes(value)) != 4 or len(single) != 5 or single[2] != 1:
        return None
    if copied[:2] + copied[3:] != single[:2] + single[3:]:
        return None
    batch, groups, copies, n, width = copied
    if not isinstance(groups, int) or not isinstance(copies, int) or joined != [batch, groups * copies, n, width]:
        return None
    return value, batch, groups, groups * copies


def _sizes(value: ir.Value | None) -> list[Size]:
    """The exporter's sizes of a value; none where it does not tell all."""
    sizes = [] if value is None or value.shape is None else list(value.shape)
    return [] if any(isinstance(size, ir.SymbolicDim) and size.value is None for size in sizes) else sizes


def _multiply(product: ir.Node, shared: Shared) -> None:
    """Group the rows, multiply, and give every query its rows again."""
    graph = graphs.graph_of(product)
    # sizes that are 0 are those of what is reshaped
    grouped = graphs.add_constant(graph, "grouped", np.array([0, shared.groups, -1, 0], np.int64))
    single = graphs.add_constant(graph, "single", np.array([0, shared.heads, -1, 0], np.int64))
    heads = shared.value
    if shared.turned:
        heads = graphs.add_before(product, "Transpose", [heads], perm=TURNED)[0]
    rows = graphs.add_before(product, "Reshape", [product.inputs[0], grouped])[0]
    found = graphs.add_before(product, "MatMul", [rows, heads])[0]
    last, scaling = product, graphs.only_user(product.outputs[0])
    if scaling is not None and _scales(scaling):  # stays beside its product: the runtime makes one kernel of the two
        last = scaling
        found = graphs.add_before(last, last.op_type, [found, last.inputs[1]])[0]
    graphs.replace(last, graphs.add_before(last, "Reshape", [found, single], like=last.outputs[0]))


def _scales(node: ir.Node) -> bool:
    """Whether a node multiplies with one number, or divides by it."""
    array = graphs.constant(node.inputs[1]) if node.op_type in ("Mul", "Div") else None
    return array is not None and array.size == 1 and array.ndim <= 4

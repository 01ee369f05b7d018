"""Attention as one node: the chain of transposes, products and a softmax that an export leaves, fused without loss.

    q ─ Reshape ─ Transpose ─┐
    k ─ Reshape ─ Transpose ─ MatMul ─ Mul(scale) ─ Add(mask) ─ Softmax ─┐
    v ─ Reshape ─ Transpose ───────────────────────────────────────── MatMul ─ Transpose ─ Reshape ─ y

becomes com.microsoft.MultiHeadAttention(q, k, v, mask), whose kernel needs none of the transposes.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from backends.onnx import graph as graphs

HEADS_FIRST = [0, 2, 1, 3]  # [batch, time, heads, width] -> [batch, heads, time, width], and back
KEYS = [0, 2, 3, 1]  # [batch, time, heads, width] -> [batch, heads, width, time]


@dataclass(frozen=True)
class Attention:
    """One attention block as the export writes it."""

    query: ir.Value  # [batch, time, heads * width], before it is split into heads; the same for keys and values
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None  # added to the scores
    scale: float
    heads: int
    output: ir.Value  # [batch, time, heads * width]


def fuse_attention(graph: ir.Graph) -> int:
    """Replace every attention block that has the exported form; returns how many there were."""
    found = [block for node in list(graph) if node.op_type == "Softmax" and (block := _attention(node))]
    for block in found:
        last = block.output.producer()
        assert last is not None
        inputs = [block.query, block.key, block.value, None, None, block.mask]
        fused = graphs.add_before(
            last,
            "MultiHeadAttention",
            inputs,
            domain=graphs.MICROSOFT,
            like=block.output,
            num_heads=block.heads,
            scale=block.scale,
        )
        graphs.replace(last, fused)
    return len(found)


def _attention(softmax: ir.Node) -> Attention | None:
    """The block around a softmax; None where anything differs from the exported form."""
    masked = graphs.made_by(softmax.inputs[0], "Add")
    scores, mask = _operands(masked, "Mul") if masked is not None else (softmax.inputs[0], None)
    scaled = graphs.made_by(scores, "Mul")
    product, scale = _constant_operand(scaled)
    pair = graphs.made_by(product, "MatMul")
    mixed = _only_user(softmax.outputs[0], "MatMul")
    if pair is None or scale is None or mixed is None or mixed.inputs[0] is not softmax.outputs[0]:
        return None
    query, key = _unsplit(pair.inputs[0], HEADS_FIRST), _unsplit(pair.inputs[1], KEYS)
    value = _unsplit(mixed.inputs[1], HEADS_FIRST)
    joined = _only_user(mixed.outputs[0], "Transpose")
    merged = _only_user(joined.outputs[0], "Reshape") if joined is not None else None
    if query is None or key is None or value is None or joined is None or merged is None:
        return None
    if list(joined.attributes["perm"].as_ints()) != HEADS_FIRST:
        return None
    heads = _heads(query, pair.inputs[0])
    if heads is None:
        return None
    return Attention(query, key, value, mask, scale, heads, merged.outputs[0])


def _operands(add: ir.Node, wanted: str) -> tuple[ir.Value | None, ir.Value | None]:
    """The operand of an addition that `wanted` produces, and the other one."""
    a, b = add.inputs
    return (a, b) if graphs.made_by(a, wanted) is not None else (b, a)


def _constant_operand(node: ir.Node | None) -> tuple[ir.Value | None, float | None]:
    """The computed operand of a product, and its scalar constant."""
    if node is None:
        return None, None
    for value, other in (node.inputs, reversed(node.inputs)):
        array = graphs.constant(other)
        if array is not None and array.size == 1:
            return value, float(array.reshape(()))
    return None, None


def _unsplit(value: ir.Value | None, order: list[int]) -> ir.Value | None:
    """What was split into heads: the input of the Reshape behind a Transpose in this order."""
    transpose = graphs.made_by(value, "Transpose")
    if transpose is None or list(transpose.attributes["perm"].as_ints()) != order:
        return None
    reshape = graphs.made_by(transpose.inputs[0], "Reshape")
    return None if reshape is None else reshape.inputs[0]


def _heads(joined: ir.Value, split: ir.Value | None) -> int | None:
    """Heads by the inferred shapes [batch, time, heads * width] and [batch, heads, time, width]."""
    if joined.shape is None or split is None or split.shape is None:
        return None
    width, per_head = joined.shape[-1], split.shape[-1]
    return width // per_head if isinstance(width, int) and isinstance(per_head, int) else None


def _only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    users = {use.node for use in value.uses()}
    node = users.pop() if len(users) == 1 else None
    return node if node is not None and node.op_type == op_type else None

"""Stacks of experts in groups of a few bits: one node of the runtime in the place of those that gather and multiply.

    x ─ GatherND(stack) · x ─ SwiGLU ─ GatherND(stack) · ─ Mul(weights) ─ ReduceSum    copies a token's experts for it
    x ─ QMoE(codes, scales, scores) ───────────────────────────────────────────────    copies none

QMoE takes the experts with the largest scores, and weighs what they give by numbers of their own. Both are the weights
that the model gives its experts, spread over all of them, so that any router serves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from backends.onnx import graph as graphs
from backends.onnx.blockwise import Blocks
from backends.onnx.dense import sibling
from backends.onnx.formats import owners
from backends.quantize import grid as grids
from knowledge.layers import LayerTable
from knowledge.techniques.groups import GroupWeights
from knowledge.values import LayerFormat, RunFailed

SHAPING = ("Reshape", "Unsqueeze", "Squeeze")


@dataclass(frozen=True)
class Stack:
    """The matrices of all experts of a block in one tensor, [experts, outputs, inputs]."""

    stored: ir.Value

    @property
    def name(self) -> str:
        return graphs.name_of(self.stored)

    @property
    def shape(self) -> tuple[int, int, int]:
        experts, outputs, inputs = graphs.stored(self.stored).shape
        return experts, outputs, inputs

    @property
    def rows(self) -> Tensor:
        """The rows of all experts, one after another. [experts · outputs, inputs]"""
        return torch.from_numpy(graphs.stored(self.stored).reshape(-1, self.shape[2]).copy())


@dataclass(frozen=True)
class Experts:
    """The experts of one block, and what a product with them takes and gives."""

    up: Stack  # [experts, 2 · inner, hidden], the rows of the gates first
    down: Stack  # [experts, hidden, inner]
    x: ir.Value  # [tokens, hidden]
    ids: ir.Value  # of the experts of every token, tokens × each
    weights: ir.Value  # of what they give, tokens × each
    each: int  # experts of a token
    end: ir.Node  # makes what a token's experts give together, [tokens, hidden]


# -- where they are --------------------------------------------------------------------------------


def expert_layers(graph: ir.Graph) -> list[Experts]:
    """Every pair of stacks that is read in the form above, in graph order."""
    return [found for node in graph if node.op_type == "GatherND" and (found := _experts(node)) is not None]


def _experts(gather: ir.Node) -> Experts | None:
    """What begins at the lookup of up projections; None where the nodes behind it are others than expected."""
    up, down_product = _stack(gather), None
    product = _then(gather.outputs[0], "MatMul")
    if up is None or product is None:
        return None
    gated = _gated(_then(product.outputs[0], "Squeeze"))
    down_product = _then(gated, "Unsqueeze", "MatMul") if gated is not None else None
    down_gather = down_product.inputs[0].producer() if down_product is not None and down_product.inputs[0] else None
    down = _stack(down_gather) if down_gather is not None and down_gather.op_type == "GatherND" else None
    if down is None or down_product is None or down_gather is None:
        return None
    weighted = _then(down_product.outputs[0], "Squeeze", "Mul")
    folded = _then(weighted.outputs[0], "Reshape") if weighted is not None else None
    end = _then(folded.outputs[0], "ReduceSum") if folded is not None else None
    token = _back(product.inputs[1], ("Unsqueeze", "Reshape", "Expand", "Unsqueeze"))
    if weighted is None or folded is None or end is None or token is None or end.outputs[0].is_graph_output():
        return None
    shape = graphs.constant(folded.inputs[1])
    weights = next((v for v in weighted.inputs if v is not None and not _follows(v, down_product)), None)
    ids, also = (_unshaped(node.inputs[1]) for node in (gather, down_gather))
    if weights is None or ids is not also or ids is None or shape is None or len(shape) != 3 or shape[1] < 1:
        return None
    return Experts(up, down, token, ids, _unshaped(weights) or weights, int(shape[1]), end)


def _stack(gather: ir.Node) -> Stack | None:
    """The stack that a lookup reads and nothing else does."""
    value = gather.inputs[0]
    tensor = value.const_value if value is not None and value.is_initializer() else None
    if value is None or tensor is None or len(value.uses()) != 1 or graphs.attribute(gather, "batch_dims", 0) != 0:
        return None
    return Stack(value) if tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 3 else None


def _then(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The last of the nodes of these kinds that read a value one after another, each the only reader."""
    node = None
    for kind in kinds:
        node = graphs.only_user(value) if value is not None else None
        if node is None or node.op_type != kind:
            return None
        value = node.outputs[0]
    return node


def _gated(squeeze: ir.Node | None) -> ir.Value | None:
    """silu(first half) · second half of a value, where that is what becomes of it."""
    split = _then(squeeze.outputs[0], "Split") if squeeze is not None else None
    if split is None or len(split.outputs) != 2:
        return None
    gate, linear = split.outputs
    product = graphs.only_user(linear)
    silu = next((v for v in product.inputs if v is not None and v is not linear), None) if product is not None else None
    made = silu.producer() if silu is not None else None
    if product is None or made is None or {product.op_type, made.op_type} != {"Mul"}:
        return None
    sigmoids = [node for v in made.inputs if v is not gate and v is not None and (node := v.producer()) is not None]
    plain = len(sigmoids) == 1 and sigmoids[0].op_type == "Sigmoid" and sigmoids[0].inputs[0] is gate
    return product.outputs[0] if plain and gate in made.inputs else None


def _back(value: ir.Value | None, kinds: tuple[str, ...]) -> ir.Value | None:
    """The value from which nodes of these kinds, the last one first, make `value`."""
    for kind in kinds:
        node = value.producer() if value is not None else None
        if node is None or node.op_type != kind:
            return None
        value = node.inputs[0]
    return value


def _unshaped(value: ir.Value | None) -> ir.Value | None:
    """The same numbers before they were given another shape."""
    while value is not None and (node := value.producer()) is not None and node.op_type in SHAPING:
        value = node.inputs[0]
    return value


def _follows(value: ir.Value, node: ir.Node) -> bool:
    """Whether a value is a node's output, in this shape or another."""
    return _unshaped(value) is node.outputs[0]


# -- storing them ----------------------------------------------------------------------------------


def store_experts(found: Experts, up: Blocks, down: Blocks, accuracy_level: int) -> None:
    """Store the stacks as `up` and `down`, [experts · outputs, inputs] each, and let one node compute with them."""
    if (up.bits, up.group_size, up.symmetric) != (down.bits, down.group_size, down.symmetric):
        raise ValueError(f"{found.up.name}: both stacks have one form; no kernel for processors has two widths")
    scores = _scores(found)
    first, second = _stored(found.up, up, alternate=True), _stored(found.down, down, alternate=False)
    inputs = [found.x, scores, *first[:2], None, *second[:2], None, None, None, None, first[2], second[2], None, scores]
    form: dict[str, Any] = {
        "k": found.each, "expert_weight_bits": up.stored_bits, "block_size": up.group_size,
        "accuracy_level": accuracy_level, "normalize_routing_weights": 0,
        "activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0,
    }  # fmt: skip
    y = graphs.add_before(found.end, "QMoE", inputs, domain=graphs.MICROSOFT, like=found.end.outputs[0], **form)
    graphs.replace(found.end, y)


def _scores(found: Experts) -> ir.Value:
    """The weights of each token's experts among zeros for all others. [tokens, experts]"""
    graph, end = graphs.graph_of(found.end), found.end
    table = graphs.add_constant(graph, "choices", np.array([-1, found.each], np.int64))
    ids, weights = (graphs.add_before(end, "Reshape", [value, table])[0] for value in (found.ids, found.weights))
    tokens = graphs.add_before(end, "Shape", [ids], start=0, end=1)[0]
    count = graphs.add_constant(graph, "experts", np.array([found.up.shape[0]], np.int64))
    shape = graphs.add_before(end, "Concat", [tokens, count], axis=0)[0]
    zeros = graphs.add_before(end, "ConstantOfShape", [shape])[0]
    return graphs.add_before(end, "ScatterElements", [zeros, ids, weights], axis=1)[0]


def _stored(stack: Stack, blocks: Blocks, alternate: bool) -> list[ir.Value | None]:
    """Codes, scales and zero points of a stack, if any; the codes take its name.

    `alternate` puts the rows of gate and up projection one after another, as the runtime has them.
    """
    graph, name, (experts, outputs, _) = stack.stored.graph, stack.name, stack.shape
    assert isinstance(graph, ir.Graph)
    bits = blocks.stored_bits
    codes = grids.centered(blocks.codes, blocks.bits, bits) if blocks.symmetric else blocks.codes
    parts = {name: grids.pack(codes, bits), sibling(name, "scale"): blocks.scales.float()}
    if not blocks.symmetric:
        parts[sibling(name, "zero")] = grids.pack(blocks.zeros, bits)
    order = torch.arange(outputs).view(2, -1).T.flatten() if alternate else torch.arange(outputs)
    del graph.initializers[name]
    stack.stored.name = f"{name}_float"
    made: list[ir.Value | None] = []
    for label, part in parts.items():
        made.append(graphs.add_constant(graph, label, part.view(experts, outputs, -1)[:, order].numpy()))
    return [*made, *[None] * (3 - len(made))]


def store_stacks(
    technique: GroupWeights, model: ir.Model, layers: LayerTable, rounded: Callable[[Stack], Blocks]
) -> tuple[dict[str, LayerFormat], dict[str, str]]:
    """Store the stacks of a model that the technique touches, in place: formats of what is, obstacles of what is not.

    Raises RunFailed for weights that are not finite.
    """
    rows = {path: i for i, path in enumerate(layers.path)}
    chosen = (layers.kind == "experts") & technique.touches(layers)
    formats: dict[str, LayerFormat] = {}
    for found in expert_layers(model.graph):
        paths = [path for stack in (found.up, found.down) for path in owners(stack.name, rows)[:1]]
        if len(paths) == 2 and all(chosen[rows[path]] for path in paths):
            up, down = (rounded(stack) for stack in (found.up, found.down))
            for path, blocks in zip(paths, (up, down), strict=True):
                if not bool(blocks.scales.isfinite().all()):
                    raise RunFailed(f"{technique.id}: {path} holds numbers that are not finite; nothing was written")
                formats[path] = blocks.format
            store_experts(found, up, down, technique.accuracy_level)
    left = [str(path) for path in layers.path[chosen] if path not in formats]
    return formats, {path: f"{path} is not read as gate, up and down projections of chosen experts" for path in left}

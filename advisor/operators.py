"""What an exported model runs around its weight-bearing layers: reshapes, sums, norms, softmax, rotations.

    q_proj ─ Reshape ─ Transpose ─ rotation ─┐
    k_proj ─ Reshape ─ Transpose ─ rotation ─ MatMul ─ Add(mask) ─ Softmax ─ MatMul ─ Transpose ─ Reshape ─ o_proj ─ Add

A layer table holds the layers only. The costs below were counted in the graphs that ONNX Runtime 1.31 makes of the
embedded examples: operators that a layer brings, and passes that they make over its outputs. A pass reads and writes
every number once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from knowledge.layers import ROLES, BoolColumn, Kind, LayerTable

Floats = NDArray[np.float64]


class Cost(NamedTuple):
    """What runs beside one layer, or beside a whole model."""

    operators: float
    plain: float = 0.0  # passes of copies, sums and products
    function: float = 0.0  # passes of norms, softmax and GELU


BEHIND = {  # a dense layer of this role
    "attention_q": Cost(2, 1.8),  # Reshape, Transpose: a transpose takes as long as 1.8 sums
    "attention_k": Cost(2, 1.8),
    "attention_v": Cost(2, 1.8),
    "attention_qkv": Cost(9, 2.8),  # the same three times, after a Split
    "attention_o": Cost(3, 2.8),  # Transpose and Reshape before it, the residual's Add behind
    "ffn_gate": Cost(1, 1.1),  # SiLU
    "ffn_down": Cost(1, 1.0),  # the residual's Add
    "router": Cost(18, 12.0),  # Softmax, TopK, weights and indices of the chosen experts
}
BIAS = Cost(1, 1.2)  # a product of several positions adds its bias in an operator of its own
GATED = Cost(1, 0.9)  # the product with the gate
GELU, GELU_WITH_BIAS = Cost(1, 0.0, 1.0), Cost(1, 0.0, 1.35)
ROTATION = Cost(7, 5.0)  # two Slices, Neg, Concat, two Muls, Add
REPEATED = Cost(4, 1.0)  # Unsqueeze, Expand and Reshapes, where queries share keys and values
SCORES = Cost(2, 0.8, 0.55)  # Add of the mask, Softmax: over the products of queries with keys
LAYER_NORM, RMS_NORM = Cost(1.5, 0.0, 1.0), Cost(7, 0.0, 1.6)  # the second is Pow, ReduceMean, Sqrt, Mul …
RESIDUAL_ADD = Cost(0.8, 0.8)  # each integer convolution of a residual network; float ones add as they compute
LOOKUP, INTEGER_LOOKUP = Cost(1), Cost(3)

# beside a model: passes over its hidden states
TOKENS = Cost(35, 2.0)  # embeddings and masks
MASKS = 6.0  # plain passes over the scores of one head
POOLING = Cost(15, 3.0)  # of a sentence embedding
PATCHES, RECURRENT, CONVOLUTIONAL, INTEGER_ENDS = 14, 7, 3, 5

# a 16-bit file where the runtime computes in 32 bits: casts around norms and scores, and a GELU in its parts
HALF_NORM, HALF_RMS_NORM, HALF_GELU, HALF_ROTATION = Cost(2, 0.7), Cost(6, 1.5), Cost(9, 2.5), Cost(4, 0.5)
HALF_SCORES, HALF_ENDS = Cost(3, 0.5), 3


class Rows:
    """Which rows of a table are what. Names become numbers once: comparing those is fast."""

    def __init__(self, layers: LayerTable) -> None:
        kind = _codes(layers.kind, _KINDS, "other")
        self.role = _codes(layers.role, _ROLES, "body")
        self.linear, self.conv, self.norm = (kind == _KINDS[name] for name in ("linear", "conv", "norm"))
        self.embedding, self.experts = (kind == _KINDS[name] for name in ("embedding", "experts"))
        self.complex, self.lstm = kind == _KINDS["complex"], kind == _KINDS["lstm"]
        self.multiplies = ~(self.embedding | self.norm)
        self.recurrent = self.lstm & self.of("hidden")
        self.depthwise = self.conv & (layers.groups > 1) & (layers.groups == layers.inputs)
        self.queries = self.linear & self.of("attention_q", "attention_qkv")
        self.packed_queries = self.of("attention_qkv")
        self.keys_and_values = self.linear & self.of("attention_k", "attention_v")
        self.up = self.linear & self.of("ffn_up")
        self.gated = bool(self.of("ffn_gate").any() or self.experts.any())
        rotated = bool(self.queries.any()) and not bool(self.of("position_embedding").any())
        self.rotated = self.linear & self.of("attention_q", "attention_k") & rotated
        self.by_role = self.role[self.linear]  # dense layers only, as `counts`
        self.counts = np.bincount(self.by_role, minlength=len(ROLES))
        self.block_count = float(self.queries.sum())
        self.any_experts, self.any_lstm, self.any_conv = (bool(m.any()) for m in (self.experts, self.lstm, self.conv))

    def of(self, *roles: str) -> BoolColumn:
        """Rows with one of these roles."""
        found = self.role == _ROLES[roles[0]]
        for role in roles[1:]:
            found = found | (self.role == _ROLES[role])
        return np.asarray(found, dtype=bool)


_KINDS = {kind: code for code, kind in enumerate(get_args(Kind))}
_ROLES = {role: code for code, role in enumerate(ROLES)}
_BEHIND = np.array([BEHIND.get(role, Cost(0)) for role in ROLES])


def _codes(column: NDArray[np.object_], known: Mapping[str, int], default: str) -> NDArray[np.int64]:
    other = known[default]
    return np.array([known.get(name, other) for name in column.tolist()], dtype=np.int64)


class Around(NamedTuple):
    """Operators without weights, and the numbers that they read and write, added up over a model."""

    operators: float
    plain: float
    function: float


def operators_around(
    layers: LayerTable, rows: Rows, outputs: Floats, tokens: float, scores: float, integer: BoolColumn, half: BoolColumn
) -> Around:
    """Everything that runs around the layers of one request.

    `outputs` are the numbers that each layer gives, `scores` the products of queries with keys, all heads together.
    `integer` rows compute in integers, `half` rows are cast from 16 bits to 32.
    """
    masks, costs = zip(*_beside_layers(layers, rows, integer, half), strict=True)
    where, cost = np.array(masks, dtype=np.float64), np.array(costs)
    numbers = np.bincount(rows.by_role, outputs[rows.linear], len(ROLES))
    passes = where @ outputs @ cost[:, 1:] + numbers @ _BEHIND[:, 1:]
    operators = where.sum(axis=1) @ cost[:, 0] + rows.counts @ _BEHIND[:, 0]
    attention, blocks = _beside_scores(bool(half.any())), rows.block_count
    once = _beside_model(layers, rows, tokens, integer, half)
    return Around(
        float(operators) + blocks * attention.operators + once.operators,
        float(passes[0]) + scores * attention.plain + once.plain,
        float(passes[1]) + scores * attention.function + once.function,
    )


def _beside_layers(
    layers: LayerTable, rows: Rows, integer: BoolColumn, half: BoolColumn
) -> list[tuple[BoolColumn, Cost]]:
    """(layers, what each of them brings), beyond what its role says."""
    biased = layers.bias > 0
    gelu = rows.up & (not rows.gated)
    apart = rows.linear & biased & ~integer & (layers.positions > 1)  # others add their bias as they compute
    found = [
        (rows.norm & biased, LAYER_NORM),
        (rows.norm & ~biased, RMS_NORM),
        (gelu & apart, GELU_WITH_BIAS),
        (gelu & ~apart, GELU),
        (rows.up & rows.gated, GATED),
        (apart & ~gelu, BIAS),
        (rows.rotated, ROTATION),
        (rows.embedding, LOOKUP),
        (rows.embedding & (layers.bits < 16), INTEGER_LOOKUP),
    ]
    info = layers.info
    if 0 < info.kv_heads < info.heads:
        shared = info.heads / info.kv_heads
        repeated = Cost(REPEATED.operators, REPEATED.plain * shared)
        found.append((rows.keys_and_values, repeated))
    if info.subfamily == "residual-cnn":
        found.append((rows.conv & integer, RESIDUAL_ADD))
    if half.any():
        found += [
            (rows.norm & biased, HALF_NORM),
            (rows.norm & ~biased, HALF_RMS_NORM),
            (gelu & half, HALF_GELU),
            (rows.rotated & half, HALF_ROTATION),
        ]
    return found


def _beside_scores(half: bool) -> Cost:
    cast = HALF_SCORES if half else Cost(0)
    return Cost(SCORES.operators + cast.operators, SCORES.plain + cast.plain, SCORES.function)


def _beside_model(layers: LayerTable, rows: Rows, tokens: float, integer: BoolColumn, half: BoolColumn) -> Around:
    """What runs once: masks, pooling, patches, the ends of an integer part."""
    info = layers.info
    if info.vocab_size:
        hidden = tokens * info.hidden_size
        pooled = POOLING if info.task == "embedding" else Cost(0)
        operators, plain = TOKENS.operators + pooled.operators, (TOKENS.plain + pooled.plain) * hidden
        return Around(operators, plain + MASKS * tokens * info.seq_len, 0.0)
    if rows.any_lstm:
        return Around(RECURRENT, 0.0, 0.0)
    if rows.any_conv:
        ends = INTEGER_ENDS * bool((integer & rows.conv).any()) + HALF_ENDS * bool(half.any())
        return Around(CONVOLUTIONAL + ends, 0.0, 0.0)
    return Around(PATCHES if rows.block_count else 0, 0.0, 0.0)

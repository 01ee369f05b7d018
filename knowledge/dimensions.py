"""Which of a model's widths each side of a layer is, so that a table can be computed for other widths.

    row                   outputs                 inputs
    attention_q           1 × inner               1 × hidden        inner = heads × head_dim
    attention_k           1 × kv                  1 × hidden        kv = kv_heads × head_dim
    attention_qkv         1 × qkv                 1 × hidden        qkv = inner + 2 × kv
    experts gate_up       2 × ffn                 1 × hidden
    token_embedding       vocabulary × fixed      1 × hidden

A width that the role does not explain stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from knowledge.layers import LayerTable, ModelInfo

Integers = NDArray[np.int64]
NAMES = ("fixed", "hidden", "inner", "kv", "qkv", "ffn", "head_dim")
FIXED, HIDDEN, INNER, KV, QKV, FFN, HEAD_DIM = range(len(NAMES))

# role -> (which width the outputs are, which the inputs are)
_BY_ROLE = {
    "attention_q": (INNER, HIDDEN),
    "attention_k": (KV, HIDDEN),
    "attention_v": (KV, HIDDEN),
    "attention_qkv": (QKV, HIDDEN),
    "attention_o": (HIDDEN, INNER),
    "ffn_up": (FFN, HIDDEN),
    "ffn_gate": (FFN, HIDDEN),
    "ffn_down": (HIDDEN, FFN),
    "router": (FIXED, HIDDEN),
    "head": (FIXED, HIDDEN),
    "token_embedding": (FIXED, HIDDEN),
    "position_embedding": (FIXED, HIDDEN),
    "stem": (HIDDEN, FIXED),
}
_HEAD_NORMS = {"q_norm", "k_norm", "query_norm", "key_norm"}


def widths(info: ModelInfo) -> dict[int, int]:
    """The model's own widths, by symbol."""
    heads, head_dim = max(info.heads, 1), info.head_dim or info.hidden_size // max(info.heads, 1)
    inner, kv = heads * head_dim, (info.kv_heads or heads) * head_dim
    return {
        FIXED: 1,
        HIDDEN: info.hidden_size,
        INNER: inner,
        KV: kv,
        QKV: inner + 2 * kv,
        FFN: info.ffn_size,
        HEAD_DIM: head_dim,
    }


@dataclass(frozen=True)
class Dimensions:
    """Per row and side a symbol and its multiple: outputs = multiple × width of the symbol."""

    output_symbol: Integers
    output_multiple: Integers
    input_symbol: Integers
    input_multiple: Integers

    def outputs(self, sizes: Mapping[int, int]) -> Integers:
        """Outputs of every row for other widths."""
        return _by_symbol(sizes)[self.output_symbol] * self.output_multiple

    def inputs(self, sizes: Mapping[int, int]) -> Integers:
        """Inputs of every row for other widths."""
        return _by_symbol(sizes)[self.input_symbol] * self.input_multiple


def _by_symbol(sizes: Mapping[int, int]) -> Integers:
    return np.array([sizes[symbol] for symbol in range(len(NAMES))], dtype=np.int64)


_KNOWN: WeakKeyDictionary[LayerTable, Dimensions] = WeakKeyDictionary()  # tables are frozen: read once each


def dimensions(layers: LayerTable) -> Dimensions:
    """Symbols of every row of a transformer's table. A width that the role does not explain counts as fixed."""
    known = _KNOWN.get(layers)
    if known is None:
        known = _KNOWN[layers] = _dimensions(layers)
    return known


def _dimensions(layers: LayerTable) -> Dimensions:
    sizes = widths(layers.info)
    columns: tuple[list[int], ...] = ([], [], [], [])
    for path, kind, role, outputs, inputs in zip(
        layers.path, layers.kind, layers.role, layers.outputs.tolist(), layers.inputs.tolist(), strict=True
    ):
        expected = _BY_ROLE.get(role)
        if kind == "norm":
            per_head = path.rpartition(".")[2] in _HEAD_NORMS and outputs != sizes[HIDDEN]
            expected = (HEAD_DIM if per_head else HIDDEN, FIXED)
        if expected is None:  # a pooler, a projection, a class token: a side as wide as the model follows it
            expected = (_guess(outputs, sizes), _guess(inputs, sizes))
        for at, (symbol, size) in enumerate(zip(expected, (outputs, inputs), strict=True)):
            fits = sizes[symbol] > 0 and size % sizes[symbol] == 0
            columns[2 * at].append(symbol if fits else FIXED)
            columns[2 * at + 1].append(size // sizes[symbol] if fits else size)
    return Dimensions(*(np.array(c, dtype=np.int64) for c in columns))


def _guess(size: int, sizes: Mapping[int, int]) -> int:
    return HIDDEN if size == sizes[HIDDEN] else FFN if size == sizes[FFN] else FIXED


def with_widths(layers: LayerTable, sizes: Mapping[int, int]) -> LayerTable:
    """The table of the same model in other widths; those that `sizes` does not name stay. Biases follow the outputs."""
    found = dimensions(layers)
    all_sizes = {**widths(layers.info), **sizes}
    outputs, inputs = found.outputs(all_sizes), found.inputs(all_sizes)
    bias = layers.bias * outputs // np.maximum(layers.outputs, 1)
    return layers.change(np.ones(len(layers), dtype=bool), outputs=outputs, inputs=inputs, bias=bias)


def with_head_counts(layers: LayerTable, heads: int, kv_heads: int) -> LayerTable:
    """Norms of single heads, used once per head, as often as a model with these numbers of heads uses them."""
    where = dimensions(layers).output_symbol == HEAD_DIM
    if not where.any():
        return layers
    info = layers.info
    of_keys = layers.choose(lambda path: path.rpartition(".")[2].startswith("k"))[where]
    share = np.where(of_keys, kv_heads / (info.kv_heads or info.heads), heads / info.heads)
    return layers.change(where, positions=layers.positions[where] * share)


def parameter_counts(layers: LayerTable, blocks: Integers, sizes: Mapping[int, Integers]) -> Integers:
    """Exact parameters of many shapes at once. blocks, and each width: [candidates] -> [candidates].

    Rows alike are counted once and multiplied; blocks are taken as alike, as they are in a new model.
    """
    found = dimensions(layers)
    inside = layers.block >= 0
    first = layers.block == (layers.block[inside].min() if inside.any() else 0)
    total = np.zeros(len(blocks), dtype=np.int64)
    ones = np.ones_like(blocks)
    for keep, times in ((~inside, ones), (first & inside, blocks)):
        total += times * _count(layers, found, np.flatnonzero(keep), sizes)
    return total


def _count(layers: LayerTable, found: Dimensions, rows: NDArray[np.intp], sizes: Mapping[int, Integers]) -> Any:
    weights: dict[tuple[int, int], int] = {}  # (output symbol, input symbol) -> sum of multiples
    biases: dict[int, int] = {}
    fan = layers.kernel * layers.copies
    for i in rows.tolist():
        out, inner = int(found.output_symbol[i]), int(found.input_symbol[i])
        numbers = int(found.output_multiple[i] * (found.input_multiple[i] // layers.groups[i]) * fan[i])
        if layers.owned[i]:
            weights[out, inner] = weights.get((out, inner), 0) + numbers
        biases[out] = biases.get(out, 0) + int(layers.bias[i] * found.output_multiple[i] // max(layers.outputs[i], 1))
    matrices = sum(count * sizes[out] * sizes[inner] for (out, inner), count in weights.items())
    return matrices + sum(count * sizes[out] for out, count in biases.items())

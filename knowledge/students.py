"""Dimensions of a smaller model with a wanted number of parameters, solved on the exact count.

Scaling depth, width and feed-forward width by √ratio each overshoots, because parameters go with depth × width². Here
all shapes that a model can be built with are counted at once, and among those that meet the target the one that shrinks
depth, width and feed-forward width most evenly is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from knowledge.dimensions import (
    FFN,
    FIXED,
    HEAD_DIM,
    HIDDEN,
    INNER,
    KV,
    QKV,
    parameter_counts,
    with_head_counts,
    with_widths,
)
from knowledge.layers import LayerTable, ModelInfo
from knowledge.recurrent import hidden_scaled
from knowledge.techniques.reshape import kept_width, narrowed, renumber
from knowledge.values import InputError, StudentShape

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

TOLERANCE = 0.01  # misses of the target below this do not compete with an even shape
CHANNEL_STEP = 4
MAX_CANDIDATES = 60_000
DIFFICULTY = {"transformer": 1.0, "moe": 1.0, "cnn": 0.8, "rnn": 1.2}


def stages_for(compression: float, family: str) -> tuple[float, ...]:
    """Compression of each stage of a progressive distillation; they multiply to `compression`.

    One rule, on the compression weighted by how hard the family distills: up to 4 one stage, up to 16 two, else three.

    >>> [round(c, 2) for c in stages_for(15, "transformer")]
    [3.87, 3.87]
    """
    effective = compression * DIFFICULTY.get(family, 1.0)
    count = 1 if effective <= 4 else 2 if effective <= 16 else 3
    return (compression ** (1 / count),) * count


def solve_student(layers: LayerTable, compression: float) -> StudentShape:
    """Shape of a student with parameters / compression parameters; `resize` gives its table.

    Transformers keep the divisibility that attention needs (hidden = heads × head_dim, heads a multiple of kv_heads, an
    even head_dim). Embedding models keep their hidden size, so that their vectors stay comparable with the teacher's.
    CNNs and recurrent models shrink every width by one share. Raises InputError above `largest_compression`.
    """
    target = layers.parameters / compression
    if layers.info.family in ("cnn", "rnn"):
        share = _solve_width(layers, target)
        return StudentShape(width=share) if share is not None else _unreachable(layers, compression)
    shape = solve_shape(layers, target)
    return shape if shape is not None else _unreachable(layers, compression)


# tables are frozen: what was solved for one holds, for every technique that asks
_STUDENTS: WeakKeyDictionary[LayerTable, dict[float, LayerTable]] = WeakKeyDictionary()
_LARGEST: WeakKeyDictionary[LayerTable, float] = WeakKeyDictionary()


def student_table(layers: LayerTable, compression: float) -> LayerTable:
    """The table of the student that `solve_student` finds; raises InputError as that does."""
    solved = _STUDENTS.setdefault(layers, {})
    if compression not in solved:
        solved[compression] = resize(layers, solve_student(layers, compression))
    return solved[compression]


def largest_compression(layers: LayerTable) -> float:
    """Compression of the smallest student that can be built: what is fixed (an embedding model's vocabulary) stays."""
    if layers not in _LARGEST:
        _LARGEST[layers] = _largest_compression(layers)
    return _LARGEST[layers]


def _largest_compression(layers: LayerTable) -> float:
    if layers.info.family in ("cnn", "rnn"):
        return layers.parameters / max(_width_count(layers, 1e-6), 1)
    return layers.parameters / max(int(_smallest(layers, _candidates(layers, grow=1.0)).min()), 1)


def _smallest(layers: LayerTable, found: Candidates) -> Integers:
    """Parameters of every candidate at the narrowest feed-forward width."""
    return parameter_counts(layers, found.blocks, {**found.sizes, FFN: np.full_like(found.blocks, found.ffn_step)})


def _unreachable(layers: LayerTable, compression: float) -> NoReturn:
    limit = largest_compression(layers)
    raise InputError(
        "distill.compression",
        f"{compression:g}",
        f"no student of {layers.info.name} has only {layers.parameters / compression:,.0f} parameters",
        f"at most {limit:.2f} is possible",
    )


# -- transformers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidates:
    """Shapes under consideration, one entry each; the feed-forward width is solved for."""

    blocks: Integers
    heads: Integers
    kv_heads: Integers
    sizes: dict[int, Any]  # symbol -> width
    ffn_step: int


def solve_shape(layers: LayerTable, parameters: float, grow: float = 1.0) -> StudentShape | None:
    """The most evenly scaled transformer shape with about `parameters` parameters; None where none is near.

    `grow` > 1 also tries that many times the depth and the width (a typical model scaled up).
    """
    info, found = layers.info, _candidates(layers, grow)
    # parameters are linear in the feed-forward width: two counts give the line
    bare = parameter_counts(layers, found.blocks, {**found.sizes, FFN: np.zeros_like(found.blocks)})
    slope = parameter_counts(layers, found.blocks, {**found.sizes, FFN: np.ones_like(found.blocks)}) - bare
    steps = np.round((parameters - bare) / np.maximum(slope, 1) / found.ffn_step)
    most = int(np.ceil(info.ffn_size * grow / found.ffn_step))
    ffn = found.ffn_step * np.clip(steps, 1, max(most, 1)).astype(np.int64)
    ffn = np.minimum(ffn, info.ffn_size) if grow <= 1 else ffn
    counts = bare + slope * ffn
    miss = np.abs(counts / parameters - 1)
    best = int(np.argmin(_unevenness(info, found, ffn) + 5 * np.maximum(miss / TOLERANCE - 1, 0)))
    if parameters < int(_smallest(layers, found).min()):
        return None
    return StudentShape(
        blocks=int(found.blocks[best]),
        hidden_size=int(found.sizes[HIDDEN][best]),
        ffn_size=int(ffn[best]),
        heads=int(found.heads[best]),
        kv_heads=int(found.kv_heads[best]),
    )


def _candidates(layers: LayerTable, grow: float) -> Candidates:
    info = layers.info
    heads = max(info.heads, 1)
    head_dim = info.head_dim or info.hidden_size // heads
    tied = heads * head_dim == info.hidden_size  # else the head's width is a setting of its own and stays
    keep_hidden = info.task == "embedding"
    dims = np.array([head_dim]) if keep_hidden or not tied else _head_dims(head_dim, grow)
    counts = np.array([heads]) if keep_hidden else np.arange(1, int(heads * grow) + 1)
    depths = np.arange(1, int(np.ceil(max(info.blocks, 1) * grow)) + 1)
    stride = int(np.ceil(len(depths) * len(counts) * len(dims) / MAX_CANDIDATES))
    if stride > 1:
        counts = counts[np.unique(np.geomspace(1, len(counts), max(2, len(counts) // stride)).astype(int) - 1)]
    b, n, d = (axis.ravel() for axis in np.meshgrid(depths, counts, dims, indexing="ij"))
    kv = _kv_heads(counts, heads, info.kv_heads or heads, grow)[np.searchsorted(counts, n)]
    if tied:
        hidden = n * d
    elif keep_hidden:
        hidden = np.full_like(n, info.hidden_size)
    else:
        hidden = np.maximum(8, np.round(info.hidden_size * n / heads / 8).astype(np.int64) * 8)
    sizes = {FIXED: np.ones_like(n), HIDDEN: hidden, INNER: n * d, KV: kv * d, QKV: (n + 2 * kv) * d, HEAD_DIM: d}
    step = 32 if info.ffn_size >= 256 else 8
    return Candidates(b, n, kv, sizes, step)


def _head_dims(head_dim: int, grow: float) -> Integers:
    """The model's own head width first, then narrower ones in even steps (rotary positions need pairs)."""
    step = 8 if head_dim >= 16 else 2
    narrower = np.arange(max(step, head_dim // 2 // step * step), head_dim, step)
    wider = np.array([128]) if grow > 1 and head_dim < 128 else np.array([], dtype=np.int64)
    even = [d for d in (*narrower.tolist(), *wider.tolist()) if d % 2 == 0]
    return np.array([*even, head_dim] if head_dim not in even else even, dtype=np.int64)


def _kv_heads(counts: Integers, heads: int, kv_heads: int, grow: float) -> Integers:
    """For each number of heads the divisor of it that is nearest to the model's own share of key-value heads.

    A student has no more of them than its teacher, from whose weights it starts.
    """
    most = int(kv_heads * grow)
    wanted = counts * kv_heads / heads
    chosen = []
    for count, want in zip(counts.tolist(), wanted.tolist(), strict=True):
        divisors = [d for d in range(1, min(count, most) + 1) if count % d == 0]
        chosen.append(min(divisors, key=lambda d: (abs(np.log(d / want)), d)))
    return np.array(chosen, dtype=np.int64)


def _unevenness(info: ModelInfo, found: Candidates, ffn: Integers) -> Floats:
    """How differently depth, width and feed-forward width are scaled, and a little for other heads than the model's."""
    depth = np.log(found.blocks / max(info.blocks, 1))
    width = np.log(found.sizes[HIDDEN] / info.hidden_size)
    inner = [np.log(ffn / info.ffn_size)] if info.ffn_size else []  # a model may have none, or none known by name
    spread = np.std(np.stack([depth, width, *inner]), axis=0)
    head_dim = found.sizes[HEAD_DIM]
    own = info.head_dim or info.hidden_size // max(info.heads, 1)
    share = (info.kv_heads or info.heads or 1) / max(info.heads, 1)
    grouping = np.abs(np.log(found.kv_heads / found.heads / share))
    uneven_lanes = 0.05 * (found.sizes[HIDDEN] % 32 > 0)  # kernels work on whole vectors
    penalty = spread + 0.1 * np.abs(np.log(head_dim / own)) + 0.1 * grouping + uneven_lanes
    return np.asarray(penalty, dtype=np.float64)


# -- convolutional and recurrent models ------------------------------------------------------------


def _solve_width(layers: LayerTable, parameters: float) -> float | None:
    """Share of every width whose exact count is nearest; None where even the smallest is far larger."""
    changing = np.isin(layers.kind, ("conv", "lstm"))
    widest = int(layers.outputs[changing].max()) if changing.any() else 1
    steps = 2 * widest
    low, high = 1, steps  # of the share; the count never falls as it grows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _width_count(layers, middle / steps) >= parameters else (middle, high)
    best = min((low, high), key=lambda step: abs(_width_count(layers, step / steps) - parameters))
    return None if parameters < _width_count(layers, 1 / steps) else best / steps


def _width_count(layers: LayerTable, share: float) -> int:
    return resize(layers, StudentShape(width=share)).parameters


# -- tables ----------------------------------------------------------------------------------------


def head_dim_of(info: ModelInfo, shape: StudentShape) -> int:
    """Width of a student's attention head: hidden / heads, or the teacher's own where that is a setting of its own."""
    heads = max(info.heads, 1)
    own = info.head_dim or info.hidden_size // heads
    if own * heads != info.hidden_size:
        return own
    return (shape.hidden_size or info.hidden_size) // (shape.heads or heads)


def resize(layers: LayerTable, shape: StudentShape) -> LayerTable:
    """The table of a model built like this one in another shape. Fresh weights: dense, and of full rank.

    Raises ValueError on a shape that no model can have (hidden size not divisible by the heads, heads not by kv_heads).
    """
    info = layers.info
    if shape.width is not None:
        if info.family == "rnn":
            return hidden_scaled(layers, lambda hidden: int(kept_width(hidden, 1 - shape.width, CHANNEL_STEP)))  # type: ignore[operator]
        return _fresh(narrowed(layers, 1 - shape.width, CHANNEL_STEP))
    heads, hidden = shape.heads or info.heads, shape.hidden_size or info.hidden_size
    kv = shape.kv_heads or min(info.kv_heads or heads, heads)
    dim = head_dim_of(info, shape)
    splits = dim * heads == hidden or dim == info.head_dim  # hidden = heads × head_dim, or the head's width is its own
    if heads and (heads % max(kv, 1) or not splits):
        raise ValueError(f"hidden size {hidden} with {heads} heads in {kv} groups is no shape")
    ffn = shape.ffn_size or info.ffn_size
    sizes = {
        FIXED: 1,
        HIDDEN: hidden,
        INNER: heads * dim,
        KV: kv * dim,
        QKV: (heads + 2 * kv) * dim,
        FFN: ffn,
        HEAD_DIM: dim,
    }
    changed = _fresh(with_widths(with_head_counts(layers, heads, kv), sizes))
    changed = _with_blocks(changed, shape.blocks or info.blocks)
    return changed.with_info(hidden_size=hidden, ffn_size=ffn, heads=heads, kv_heads=kv, head_dim=dim)


def _fresh(layers: LayerTable) -> LayerTable:
    everything = np.ones(len(layers), dtype=bool)
    return layers.change(everything, density=1.0, pattern="dense", rank=0)


def _with_blocks(layers: LayerTable, blocks: int) -> LayerTable:
    """The first `blocks` blocks; where there are fewer, the last one is repeated."""
    have = int(layers.block.max()) + 1 if (layers.block >= 0).any() else 0
    if not have or blocks == have:
        return layers
    if blocks < have:
        return layers.keep(layers.block < blocks).with_info(blocks=blocks)
    rows = layers.rows()
    last = [row for row in rows if row["block"] == have - 1]
    end = max(i for i, row in enumerate(rows) if row["block"] == have - 1) + 1
    more = [
        {**row, "block": number, "path": renumber(row["path"], have - 1, number)}
        for number in range(have, blocks)
        for row in last
    ]
    return LayerTable.of(rows[:end] + more + rows[end:], layers.info).with_info(blocks=blocks)

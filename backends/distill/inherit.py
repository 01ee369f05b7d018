"""Which of the original's units a smaller transformer keeps, and cutting every layer down to them.

Each side of a layer is a width of the model (knowledge.dimensions). Units are scored by their squared weights, each
layer normalized, so that a unit counts by its share and not by the layer's scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backends.locate import cut, located
from knowledge.dimensions import FFN, HEAD_DIM, HIDDEN, INNER, KV, QKV, dimensions, widths
from knowledge.layers import LayerTable
from knowledge.values import Shape

SCORED = ("linear", "embedding", "experts", "conv")


@dataclass(frozen=True)
class Side:
    """One side of a layer: `multiple` times the width `symbol`, in a block (-1: outside)."""

    symbol: int
    multiple: int
    block: int


@dataclass(frozen=True)
class Row:
    """One layer's weight with both sides."""

    path: str
    kind: str
    outputs: Side
    inputs: Side


def inherited(module: nn.Module, layers: LayerTable, target: LayerTable) -> dict[str, Shape]:
    """Cut every layer of `module` to the target's widths, in place; returns the new shapes by path.

    The module has lost its blocks already. `layers` is the table before: its first blocks' paths name the
    blocks that were kept, because blocks are alike.
    """
    rows = _rows(layers, set(target.path.tolist()))
    choose = Chooser(module, rows, layers, target)
    ties = _ties(module)
    shapes = {}
    for row in rows:
        at = target.index(row.path)
        wanted = int(target.outputs[at]), int(target.inputs[at])
        before = located(module, row.path).sizes
        if before == wanted:
            continue
        outputs = choose.indices(row.outputs, before[0], wanted[0])
        inputs = choose.indices(row.inputs, before[1], wanted[1])
        cut(module, row.path, outputs, inputs)
        shapes[row.path] = Shape(outputs=wanted[0], inputs=wanted[1])
    _retie(module, ties)
    return shapes


def _rows(layers: LayerTable, paths: set[str]) -> list[Row]:
    found = dimensions(layers)
    return [
        Row(
            layers.path[i],
            layers.kind[i],
            Side(int(found.output_symbol[i]), int(found.output_multiple[i]), int(layers.block[i])),
            Side(int(found.input_symbol[i]), int(found.input_multiple[i]), int(layers.block[i])),
        )
        for i in range(len(layers))
        if layers.path[i] in paths
    ]


class Chooser:
    """Kept units of every width, chosen once per block."""

    def __init__(self, module: nn.Module, rows: list[Row], layers: LayerTable, target: LayerTable) -> None:
        self.module, self.rows = module, rows
        self.old, self.new = widths(layers.info), widths(target.info)
        self.heads = (layers.info.heads, target.info.heads)
        self.kv_heads = (layers.info.kv_heads or layers.info.heads, target.info.kv_heads or target.info.heads)
        self.found: dict[tuple[int, int], Tensor] = {}

    def indices(self, side: Side, before: int, after: int) -> Tensor | None:
        """Positions that stay on a side `before` wide; None where all do."""
        if before == after:
            return None
        width = self.old[side.symbol]
        kept = self._units(side.symbol, -1 if side.symbol == HIDDEN else side.block)
        every = torch.cat([kept + i * width for i in range(side.multiple)])
        return every if len(every) == after else torch.arange(after)

    def _units(self, symbol: int, block: int) -> Tensor:
        if (symbol, block) not in self.found:
            self.found[symbol, block] = self._chosen(symbol, block)
        return self.found[symbol, block]

    def _chosen(self, symbol: int, block: int) -> Tensor:
        if symbol == HEAD_DIM:
            return head_dims(self.old[HEAD_DIM], self.new[HEAD_DIM])
        if symbol in (HIDDEN, FFN):
            return largest(self._importance(symbol, block), self.new[symbol])
        queries, keys = self._heads(block)
        dims = head_dims(self.old[HEAD_DIM], self.new[HEAD_DIM])
        q, kv = spans(queries, self.old[HEAD_DIM], dims), spans(keys, self.old[HEAD_DIM], dims)
        if symbol == QKV:
            inner, group = self.old[INNER], self.old[KV]
            return torch.cat([q, kv + inner, kv + inner + group])
        return {INNER: q, KV: kv}.get(symbol, torch.arange(self.new[symbol]))

    def _heads(self, block: int) -> tuple[Tensor, Tensor]:
        """Query heads and key–value heads that stay."""
        count, kept = self.heads
        groups, kept_groups = self.kv_heads
        scores = self._importance(INNER, block)
        scores = scores.exp().view(count, -1).sum(1)
        return choose_heads(scores, groups, kept, kept_groups)

    def _importance(self, symbol: int, block: int) -> Tensor:
        """How much each unit counts, from its share of every layer's squared weights. [width]

        Many layers write and read a hidden unit: the shares add up. An inner unit is written once and read once, and
        one that either side ignores is worth nothing: the shares multiply (as sums of logarithms).
        """
        width = self.old[symbol]
        total = torch.zeros(width)
        for row in self.rows:
            if row.kind not in SCORED or (symbol != HIDDEN and row.outputs.block != block):
                continue
            found = located(self.module, row.path)
            for side, axis in ((row.outputs, found.axes.outputs), (row.inputs, found.axes.inputs)):
                fits = axis is not None and found.weight.shape[axis] == width * side.multiple
                if side.symbol == symbol and axis is not None and fits:
                    part = share(found.weight, axis).view(side.multiple, width).sum(0)
                    total += part if symbol == HIDDEN else part.log()
        return total


def share(weight: Tensor, axis: int) -> Tensor:
    """Each index's share of the squared weights along an axis; they add up to 1."""
    squares = weight.detach().cpu().double().square().transpose(0, axis).flatten(1).sum(1)
    return (squares / squares.sum().clamp(min=torch.finfo(torch.float64).tiny)).float()


def largest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` highest scores, in ascending order."""
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values


def head_dims(before: int, after: int) -> Tensor:
    """Dimensions of a head that stay: pairs (i, i + half), evenly spaced so that rotary frequencies stay alike.

    >>> head_dims(8, 4).tolist()
    [0, 2, 4, 6]
    """
    if before % 2 or after % 2:
        return torch.arange(after)
    half = torch.arange(after // 2) * before // after
    return torch.cat([half, half + before // 2])


def spans(heads: Tensor, width: int, dims: Tensor) -> Tensor:
    """Positions of the given dimensions of the given heads, `width` apart."""
    return (heads[:, None] * width + dims[None, :]).flatten()


def choose_heads(scores: Tensor, groups: int, kept: int, kept_groups: int) -> tuple[Tensor, Tensor]:
    """Query heads and key–value heads that stay: a query head keeps its key–value head where that is possible.

    scores: [query heads]. With fewer groups the strongest stay; within a group its strongest heads.

    >>> q, kv = choose_heads(torch.tensor([1.0, 5.0, 2.0, 3.0]), 2, 2, 2)
    >>> q.tolist(), kv.tolist()
    ([1, 3], [0, 1])
    """
    size, kept_size = len(scores) // groups, kept // kept_groups
    if kept_groups > groups or kept_size > size:
        queries = largest(scores, kept)
        return queries, torch.div(queries, size, rounding_mode="floor")[::kept_size].contiguous()
    by_group = scores.view(groups, size)
    strongest = largest(by_group.sum(1), kept_groups)
    inside = [group * size + largest(by_group[group], kept_size) for group in strongest.tolist()]
    return torch.cat(inside), strongest


def _ties(module: nn.Module) -> list[list[str]]:
    """Names that share one parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _retie(module: nn.Module, ties: list[list[str]]) -> None:
    for first, *others in ties:
        for name in others:
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, module.get_parameter(first))

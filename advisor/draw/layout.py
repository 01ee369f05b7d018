"""Where everything is drawn: phases as columns, steps of ranked chains led between the boxes of the columns they pass.

A layered layout after Sugiyama, Tagawa and Toda (1981): a step that passes columns gets a place of its own in each of
them, boxes move toward the mean of their neighbors, and each column is put in order by least squares under its gaps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from advisor.curves import isotonic
from advisor.draw.drawing import Drawing, Edge, Node

BOX_HEIGHT, LANE_HEIGHT, GAP = 28.0, 6.0, 12.0
COLUMN_GAP, MARGIN, HEADER = 54.0, 18.0, 30.0
CHARACTER, PADDING = 7.0, 24.0  # width of a letter, and of the space around a label
SWEEPS = 24
PULL = {"first": 12.0, "ranked": 3.0, "follows": 4.0}  # of a step on the boxes at its ends


@dataclass
class Item:
    """A box, or the lane of a step that passes a column."""

    column: int
    height: float
    node: Node | None = None
    sunk: bool = False  # below all others of its column
    y: float = 0.0  # of its middle
    pulls: list[tuple[Item, float]] = field(default_factory=list)

    @property
    def weight(self) -> float:
        """How much it resists being moved from where its neighbors pull it."""
        return 1.0 + sum(strength for _, strength in self.pulls)


@dataclass(frozen=True)
class Box:
    node: Node
    x: float
    y: float  # of its middle
    width: float
    height: float = BOX_HEIGHT


@dataclass(frozen=True)
class Line:
    """A step as points to pass from left to right."""

    edge: Edge
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Layout:
    width: float
    height: float
    titles: tuple[tuple[float, str], ...]  # x of the column's middle, phase
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]


def lay_out(drawing: Drawing) -> Layout:
    """Places for every node and edge of a drawing."""
    phases = sorted({node.phase for node in drawing.nodes})
    columns = {phase: number for number, phase in enumerate(phases)}
    items = {n.id: Item(columns[n.phase], BOX_HEIGHT, n, n.state in ("refused", "idle")) for n in drawing.nodes}
    lanes = {(e.first, e.then): _lanes(e, items) for e in drawing.edges if e.ranks}
    _connect(drawing, items, lanes)
    by_column = _columns(len(phases), [*items.values(), *itertools.chain.from_iterable(lanes.values())])
    _settle(by_column)
    top = min(item.y - item.height / 2 for item in _all(by_column))
    for item in _all(by_column):
        item.y += MARGIN + HEADER - top
    lefts, widths = _across(by_column)
    return Layout(
        width=lefts[-1] + widths[-1] + MARGIN,
        height=max(item.y + item.height / 2 for item in _all(by_column)) + MARGIN,
        titles=tuple((lefts[c] + widths[c] / 2, drawing.phase_title(phase)) for phase, c in columns.items()),
        boxes=tuple(Box(i.node, lefts[i.column], i.y, widths[i.column]) for i in items.values() if i.node is not None),
        lines=tuple(_line(e, items, lanes.get((e.first, e.then), []), lefts, widths) for e in drawing.edges),
    )


def _lanes(edge: Edge, items: dict[str, Item]) -> list[Item]:
    """A lane in each column that a step of a ranked chain passes."""
    return [Item(c, LANE_HEIGHT) for c in range(items[edge.first].column + 1, items[edge.then].column)]


def _connect(drawing: Drawing, items: dict[str, Item], lanes: dict[tuple[str, str], list[Item]]) -> None:
    """Let the steps of ranked chains, and what must follow a technique, pull their ends together."""
    for edge in drawing.edges:
        if edge.ranks:
            strength = PULL["first" if 1 in edge.ranks else "ranked"]
        elif "@" in edge.then:
            strength = PULL["follows"]
        else:
            continue
        way = [items[edge.first], *lanes.get((edge.first, edge.then), []), items[edge.then]]
        for one, other in itertools.pairwise(way):
            one.pulls.append((other, strength))
            other.pulls.append((one, strength))


def _columns(count: int, items: Sequence[Item]) -> list[list[Item]]:
    """Items by column, those of ranked chains first, what is sunk last, evenly spaced around 0."""
    columns: list[list[Item]] = [[] for _ in range(count)]
    for item in items:
        columns[item.column].append(item)
    for column in columns:
        column.sort(key=lambda item: (item.sunk, item.node is not None and not item.node.ranks))
        height = sum(item.height + GAP for item in column)
        at = -height / 2
        for item in column:
            item.y = at + (item.height + GAP) / 2
            at += item.height + GAP
    return columns


def _settle(columns: list[list[Item]]) -> None:
    """Sweep to and fro: each item moves toward the mean of its neighbors, and the column makes room."""
    for sweep in range(SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wanted = {id(item): _pulled(item) for item in column}
            column.sort(key=lambda item: (item.sunk, wanted[id(item)]))
            spread(column, [wanted[id(item)] for item in column])


def _pulled(item: Item) -> float:
    if not item.pulls:
        return item.y
    return sum(other.y * strength for other, strength in item.pulls) / sum(s for _, s in item.pulls)


def spread(column: Sequence[Item], wanted: Sequence[float]) -> None:
    """Set `y` as near to what is wanted as the order and the gaps allow, by least squares."""
    offsets = list(itertools.accumulate((_apart(a, b) for a, b in itertools.pairwise(column)), initial=0.0))
    levels = isotonic([want - offset for want, offset in zip(wanted, offsets, strict=True)], [i.weight for i in column])
    for item, level, offset in zip(column, levels, offsets, strict=True):
        item.y = level + offset


def _apart(one: Item, other: Item) -> float:
    return (one.height + other.height) / 2 + GAP


def _across(columns: list[list[Item]]) -> tuple[list[float], list[float]]:
    """Left edge and width of each column, as wide as its longest label."""
    labels = [[item.node.label for item in column if item.node] for column in columns]
    widths = [max(map(len, names)) * CHARACTER + PADDING for names in labels]  # every phase has a node
    lefts = list(itertools.accumulate((width + COLUMN_GAP for width in widths[:-1]), initial=MARGIN))
    return lefts, widths


def _line(edge: Edge, items: dict[str, Item], lanes: list[Item], lefts: list[float], widths: list[float]) -> Line:
    first, then = items[edge.first], items[edge.then]
    points = [(lefts[first.column] + widths[first.column], first.y)]
    for lane in lanes:
        points += [(lefts[lane.column], lane.y), (lefts[lane.column] + widths[lane.column], lane.y)]
    return Line(edge, (*points, (lefts[then.column], then.y)))


def _all(columns: list[list[Item]]) -> list[Item]:
    return list(itertools.chain.from_iterable(columns))

"""The drawing as SVG, readable in light and dark. It is built as a tree, which escapes every text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree as ET

from advisor.draw.drawing import Drawing, Edge, figures_text
from advisor.draw.layout import BOX_HEIGHT, MARGIN, Box, Layout, Line, lay_out
from advisor.show.console import clean

COLORS = 6  # classes c1 … c6: the first chain, the second, …; later ones share the last
LEGEND_ROW = 20.0
STATES = (
    ("first", "in the first chain"),
    ("ranked", "in another chain shown"),
    ("allowed", "allowed"),
    ("idle", "allowed, but nothing calls for it"),
    ("refused", "refused"),
)
STYLE = """
.chains { --ink: #1b2330; --soft: #5b6675; --line: #c3cad3; --card: #ffffff; --wash: #eef1f5; --mark: #ffffff;
  --c1: #2458c5; --c2: #c2570c; --c3: #12834f; --c4: #8a3fb5; --c5: #b0276c; --c6: #6b7280; color-scheme: light dark;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
@media (prefers-color-scheme: dark) {
  .chains { --ink: #e6eaf0; --soft: #9aa6b5; --line: #46515f; --card: #181e27; --wash: #212936; --mark: #10141b;
    --c1: #7ea6ff; --c2: #ffa45c; --c3: #5bd69a; --c4: #cf9bf2; --c5: #ff8ec0; --c6: #9aa6b5; }
}
.chains .ground { fill: var(--card); }
.chains text { font-size: 12.5px; fill: var(--ink); }
.chains .phase, .chains .key { fill: var(--soft); font-size: 12px; }
.chains .rank { font-size: 9.5px; fill: var(--soft); }
.chains .edge path { fill: none; stroke: var(--soft); stroke-width: 1; stroke-opacity: .16; }
.chains .edge .reach { stroke-width: 9; stroke-opacity: 0; }
.chains .strong path { stroke-width: 2; stroke-opacity: .9; }
.chains .strong .reach { stroke-width: 12; stroke-opacity: 0; }
.chains .c1 .way { stroke: var(--c1); stroke-width: 4; stroke-opacity: 1; } .chains .c2 .way { stroke: var(--c2); }
.chains .c3 .way { stroke: var(--c3); } .chains .c4 .way { stroke: var(--c4); } .chains .c5 .way { stroke: var(--c5); }
.chains .c6 .way { stroke: var(--c6); }
.chains .node rect { fill: var(--card); stroke: var(--line); stroke-width: 1.2; }
.chains .node.end rect { fill: var(--wash); }
.chains .node.ranked rect { stroke: var(--ink); stroke-width: 1.6; }
.chains .node.first rect { fill: var(--c1); stroke: var(--c1); }
.chains .node.first .name { fill: var(--mark); font-weight: 600; }
.chains .node.idle rect { stroke-dasharray: 2 3; }
.chains .node.refused rect { fill: var(--wash); stroke-dasharray: 5 4; }
.chains .node.refused text, .chains .node.idle text { fill: var(--soft); }
.chains .node.refused .name { text-decoration: line-through; }
.chains [tabindex]:focus { outline: none; }
.chains .node:focus rect, .chains .node:hover rect { stroke: var(--c2); stroke-width: 2.5; }
.chains .edge:focus .way, .chains .edge:hover .way { stroke-opacity: 1; stroke-width: 3.5; }
.chains.picked .edge:not(.lit) .way { stroke-opacity: .06; } .chains.picked .node:not(.lit) { opacity: .3; }
.chains.picked .edge.lit .way { stroke-opacity: 1; }
"""


def svg(drawing: Drawing) -> str:
    """A file of its own, with the legend and the chains below the graph."""
    layout = lay_out(drawing)
    states = states_of(drawing)
    rows = max(len(states), len(drawing.chains)) + 1
    tree = picture(drawing, layout, extra=rows * LEGEND_ROW + MARGIN)
    *_, width, height = tree.attrib["viewBox"].split()
    tree.attrib |= {"width": width, "height": height}
    below = layout.height + LEGEND_ROW
    _legend(tree, states, MARGIN, below)
    _chains(tree, drawing, layout.width / 3, below)
    return serialized(tree) + "\n"


def states_of(drawing: Drawing) -> list[tuple[str, str]]:
    """The states that the drawing has, with what they mean."""
    present = {node.state for node in drawing.nodes}
    return [(state, text) for state, text in STATES if state in present]


def serialized(tree: ET.Element) -> str:
    return ET.tostring(tree, encoding="unicode")


def picture(drawing: Drawing, layout: Layout, extra: float = 0.0) -> ET.Element:
    """The graph itself, with room below it."""
    size = f"0 0 {layout.width:.0f} {layout.height + extra:.0f}"
    tree = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "chains", "viewBox": size})
    tree.set("role", "group")
    tree.set("aria-label", clean(f"Graph of chains for {drawing.title}"))
    _element(tree, "title", f"Chains for {drawing.title}")
    _element(tree, "style", STYLE)
    _element(tree, "rect", class_="ground", width="100%", height="100%")
    for x, text in layout.titles:
        _element(tree, "text", text, class_="phase", x=x, y=MARGIN + 4, text_anchor="middle")
    for line in sorted(layout.lines, key=lambda line: -min(line.edge.ranks, default=99)):
        _edge(tree, line, drawing)
    for box in layout.boxes:
        _node(tree, box)
    return tree


def _edge(tree: ET.Element, line: Line, drawing: Drawing) -> None:
    """A step: what is seen, and a broader way that is easier to point at."""
    edge, about = line.edge, drawing.about_edge(line.edge)
    group = _element(tree, "g", class_=edge_class(edge), data_first=edge.first, data_then=edge.then)
    group.set("data-ranks", " ".join(map(str, edge.ranks)))
    if edge.ranks:
        group.set("tabindex", "0")
        group.set("role", "img")
        group.set("aria-label", clean(about))
    _element(group, "title", about)
    way = curve(line.points)
    _element(group, "path", class_="way", d=way)
    _element(group, "path", class_="reach", d=way)


def edge_class(edge: Edge) -> str:
    return f"edge strong {color(edge.ranks[0])}" if edge.ranks else "edge"


def color(rank: int) -> str:
    return f"c{min(rank, COLORS)}"


def curve(points: Iterable[tuple[float, float]]) -> str:
    """A path that leaves and enters every point level.

    >>> curve([(0, 0), (10, 4)])
    'M0 0C5 0 5 4 10 4'
    """
    (x, y), *rest = points
    parts = [f"M{x:g} {y:.4g}"]
    for to_x, to_y in rest:
        half = (x + to_x) / 2
        parts.append(f"C{half:g} {y:.4g} {half:g} {to_y:.4g} {to_x:g} {to_y:.4g}")
        x, y = to_x, to_y
    return "".join(parts)


def _node(tree: ET.Element, box: Box) -> None:
    node = box.node
    group = _element(tree, "g", class_=f"node {node.state}", data_id=node.id, tabindex=0, role="img")
    group.set("aria-label", clean(node.about))
    group.set("data-ranks", " ".join(map(str, node.ranks)))
    _element(group, "title", node.about)
    top = box.y - box.height / 2
    _element(group, "rect", x=box.x, y=top, width=box.width, height=box.height, rx=7)
    _element(group, "text", node.label, class_="name", x=box.x + box.width / 2, y=box.y + 4.5, text_anchor="middle")
    if node.ranks and node.technique:
        right = box.x + box.width - 3
        _element(group, "text", numbers(node.ranks), class_="rank", x=right, y=top - 2.5, text_anchor="end")


def numbers(ranks: Sequence[int]) -> str:
    """
    >>> numbers([1, 2, 3, 5]), numbers([4])
    ('1–3, 5', '4')
    """
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}–{run[-1]}" if run[1:] else str(run[0]) for run in runs)


def _legend(tree: ET.Element, states: Sequence[tuple[str, str]], x: float, y: float) -> None:
    for number, (state, text) in enumerate(states):
        at = y + number * LEGEND_ROW
        group = _element(tree, "g", class_=f"node {state}")
        _element(group, "rect", x=x, y=at, width=26, height=BOX_HEIGHT / 2, rx=4)
        _element(tree, "text", text, class_="key", x=x + 34, y=at + 11)


def _chains(tree: ET.Element, drawing: Drawing, x: float, y: float) -> None:
    for number, chain in enumerate(drawing.chains):
        at = y + number * LEGEND_ROW + 7
        group = _element(tree, "g", class_=f"edge strong {color(chain.rank)}")
        _element(group, "path", class_="way", d=f"M{x:g} {at:g}h26")
        text = f"{chain.rank}. {chain.text}: {figures_text(chain, drawing.drop_unit)}"
        _element(tree, "text", text, class_="key", x=x + 34, y=at + 4)


def _element(parent: ET.Element, tag: str, text: str = "", **attributes: object) -> ET.Element:
    """A child; `class_` and `text_anchor` become `class` and `text-anchor`, and numbers are short."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    shown = {name: f"{value:.6g}" if isinstance(value, float) else clean(str(value)) for name, value in named.items()}
    made = ET.SubElement(parent, tag, shown)
    made.text = clean(text) if text else None
    return made

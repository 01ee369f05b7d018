"""The drawing as a Graphviz graph: every step, the first-ranked chain in color, refusals as tooltips.

Places are given: laid out by Graphviz itself, the many steps of no chain would push all boxes apart.
"""

from __future__ import annotations

from collections.abc import Iterator

from advisor.draw.drawing import Drawing, Edge
from advisor.draw.layout import MARGIN, Box, lay_out
from advisor.show.console import clean

FONT = "Helvetica"
INCH = 72.0  # points
ACCENT, STRONG, SOFT, FAINT, WASH = "#2458c5", "#1b2330", "#6b7280", "#5b667530", "#e5e7eb"
STYLES = {
    "first": {"style": "filled,rounded", "fillcolor": ACCENT, "color": ACCENT, "fontcolor": "#ffffff"},
    "ranked": {"style": "rounded", "color": ACCENT, "penwidth": "2"},
    "allowed": {"style": "rounded"},
    "idle": {"style": "rounded,dotted", "fontcolor": SOFT, "color": SOFT},
    "refused": {"style": "filled,rounded,dashed", "fillcolor": WASH, "color": SOFT, "fontcolor": SOFT},
    "end": {"style": "filled", "fillcolor": WASH},
}


def dot(drawing: Drawing) -> str:
    """A directed graph from left to right, a column for each phase; any Graphviz command draws it."""
    return "\n".join(["digraph chains {", *(f"  {line};" for line in _statements(drawing)), "}"]) + "\n"


def _statements(drawing: Drawing) -> Iterator[str]:
    layout = lay_out(drawing)
    engine = {"layout": "neato", "inputscale": f"{INCH:g}", "splines": "true", "outputorder": "edgesfirst"}
    yield f"graph {_list(**engine, fontname=FONT, label=drawing.title, tooltip=drawing.title)}"
    yield f"node {_list(shape='box', fixedsize='true', fontname=FONT, fontsize='12')}"
    for number, (x, text) in enumerate(layout.titles):
        looks = {"shape": "plaintext", "fontcolor": SOFT, "pos": _place(x, MARGIN)}
        yield f"{quote(f'phase {number}')} {_list(label=text, **looks)}"
    yield from (_node(box) for box in layout.boxes)
    yield from (_edge(edge, drawing) for edge in sorted(drawing.edges, key=lambda e: -min(e.ranks, default=99)))


def _place(x: float, y: float) -> str:
    return f"{x:.6g},{-y:.6g}!"  # Graphviz counts upward


def _node(box: Box) -> str:
    node = box.node
    size = {
        "width": f"{box.width / INCH:.3f}",
        "height": f"{box.height / INCH:.3f}",
        "pos": _place(box.x + box.width / 2, box.y),
    }
    looks = {"label": node.label, "tooltip": node.about, **size, **STYLES[node.state]}
    return f"{quote(node.id)} {_list(**looks)}"


def _edge(edge: Edge, drawing: Drawing) -> str:
    looks = {"color": FAINT, "arrowhead": "none"}
    if edge.ranks:
        looks = {"color": ACCENT, "penwidth": "3"} if 1 in edge.ranks else {"color": STRONG, "penwidth": "1.5"}
    looks["tooltip"] = looks["edgetooltip"] = drawing.about_edge(edge)
    return f"{quote(edge.first)} -> {quote(edge.then)} {_list(**looks)}"


def _list(**attributes: str) -> str:
    return f"[{', '.join(f'{name}={quote(value)}' for name, value in attributes.items())}]"


def quote(text: str) -> str:
    r"""A quoted string that means the text itself.

    >>> print(quote('say "hi" \\N'))
    "say \"hi\" \\N"
    """
    escaped = clean(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'

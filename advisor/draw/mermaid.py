"""The drawing as a Mermaid flowchart: every technique in its phase, and the steps of the ranked chains."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from advisor.draw.drawing import Drawing, Edge, Node

MOST_EDGES = 40  # more would hide the chains; Mermaid itself refuses beyond 500
RULES_SHOWN = 3  # beside a step
SAFE = re.compile(r"[^A-Za-z0-9 .,:;_+@→×–-]")
CLASSES = (
    "classDef first fill:#2458c5,stroke:#2458c5,color:#ffffff",
    "classDef ranked stroke:#2458c5,stroke-width:2px",
    "classDef allowed stroke-width:1px",
    "classDef idle stroke-dasharray:2 3,color:#6b7280",
    "classDef refused fill:#e5e7eb,stroke:#9aa6b5,color:#6b7280,stroke-dasharray:5 4",
    "classDef end_ fill:#eef1f5,stroke:#5b6675,color:#1b2330",
)


def mermaid(drawing: Drawing) -> str:
    """A flowchart from left to right; the first-ranked chain's steps are thick and name their rules."""
    ids = {node.id: f"n{number}" for number, node in enumerate(drawing.nodes)}
    shown = [edge for edge in drawing.edges if edge.ranks]
    others = [edge for edge in drawing.edges if not edge.ranks]
    lines = [f"%% Chains for {escape(drawing.title)}, at most {escape(drawing.budget)} lost", "flowchart LR"]
    lines += _phases(drawing, ids)
    lines += _columns(drawing, ids)
    lines += [_step(edge, ids) for edge in shown]
    if len(drawing.edges) <= MOST_EDGES:
        lines += [f"  {ids[edge.first]} -.-> {ids[edge.then]}" for edge in others]
    else:
        lines.append(f"%% {len(others)} other allowed steps are left out here; the formats dot, svg and html have them")
    lines += [f"  {definition}" for definition in CLASSES]
    lines += [f"%% {escape(f'refused: {no.technique} by {no.rule}: {no.text}')}" for no in drawing.refused]
    return "\n".join(lines) + "\n"


def _phases(drawing: Drawing, ids: dict[str, str]) -> Iterator[str]:
    """The nodes, those of a phase in a box of its own."""
    for phase in sorted({node.phase for node in drawing.nodes}):
        title = drawing.phase_title(phase)
        nodes = [node for node in drawing.nodes if node.phase == phase]
        if title:
            yield f'  subgraph p{phase}["{escape(title)}"]'
        indent = "    " if title else "  "
        yield from (f"{indent}{_node(node, ids[node.id], drawing)}" for node in nodes)
        if title:
            yield "  end"


def _columns(drawing: Drawing, ids: dict[str, str]) -> Iterator[str]:
    """Invisible links from a box of each phase to all of the next one: they keep the phases in their order."""
    phases = sorted({node.phase for node in drawing.nodes})
    for one, other in itertools.pairwise(phases):
        leader = next(ids[node.id] for node in drawing.nodes if node.phase == one)
        followers = [ids[node.id] for node in drawing.nodes if node.phase == other]
        yield f"  {leader} ~~~ {' & '.join(followers)}"


def _node(node: Node, name: str, drawing: Drawing) -> str:
    rule = next((no.rule for no in drawing.refused if no.technique == node.technique), "")
    refused = f"<br/>{escape(f'refused: {rule}')}" if node.state == "refused" else ""
    style = "end_" if node.state == "end" else node.state
    return f'{name}["{escape(node.label)}{refused}"]:::{style}'


def _step(edge: Edge, ids: dict[str, str]) -> str:
    first, then = ids[edge.first], ids[edge.then]
    if 1 not in edge.ranks:
        return f"  {first} --> {then}"
    rules = [escape(rule) for rule in edge.rules[:RULES_SHOWN]]
    if len(edge.rules) > RULES_SHOWN:
        rules.append(f"and {len(edge.rules) - RULES_SHOWN} more")
    return f'  {first} ==>|"{"<br/>".join(rules)}"| {then}' if rules else f"  {first} ==> {then}"


def escape(text: str) -> str:
    """Text that Mermaid shows as it is: one line, everything with a meaning as a character code.

    >>> escape('a "b" #c')
    'a #34;b#34; #35;c'
    """
    return SAFE.sub(lambda found: f"#{ord(found[0])};", " ".join(text.split()))

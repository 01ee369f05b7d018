"""Mermaid: every line is a statement, the first chain is marked, and nothing from outside is markup."""

import re
from itertools import pairwise

from advisor.draw import render

NODE = re.compile(r'\s*(n\d+)\["([^"]*)"\]:::(\w+)')
STEP = re.compile(r'\s*(n\d+) (==>|-->|-\.->)(?:\|"([^"]*)"\|)? (n\d+)')
OTHER = re.compile(
    r'flowchart LR|%% .*|\s*subgraph p\d+\["[^"]*"\]|\s*end|\s*n\d+ ~~~ n\d+( & n\d+)*|\s*classDef \w+ [^\n]*'
)
SHOWN = re.compile(r"(?:[A-Za-z0-9 .,:;_+@→×–-]|#\d+;|<br/>)*")


def parse_mermaid(text):
    """(label and class of each node, steps by their arrow); fails on a line that is no statement."""
    nodes, steps = {}, {"==>": [], "-->": [], "-.->": []}
    for line in text.splitlines():
        if found := NODE.fullmatch(line):
            assert found[1] not in nodes
            assert SHOWN.fullmatch(found[2]), found[2]
            nodes[found[1]] = (found[2], found[3])
        elif found := STEP.fullmatch(line):
            assert SHOWN.fullmatch(found[3] or ""), found[3]
            steps[found[2]].append((found[1], found[4]))
        else:
            assert OTHER.fullmatch(line), line
    return nodes, steps


def test_mermaid_marks_the_first_chain_and_names_refusals(drawing):
    text = render(drawing, "mermaid")
    nodes, steps = parse_mermaid(text)
    names = {f"n{number}": node for number, node in enumerate(drawing.nodes)}
    assert set(nodes) == set(names)
    for name, (label, style) in nodes.items():
        node = names[name]
        assert label.startswith(node.technique or node.id)
        assert style == ("end_" if node.state == "end" else node.state)
        assert ("refused: " in label) == (node.state == "refused")
    thick = [(names[first].id, names[then].id) for first, then in steps["==>"]]
    assert set(thick) == set(pairwise(drawing.path))
    drawn = sum(map(len, steps.values()))
    left_out = re.search(r"%% (\d+) other allowed steps are left out", text)
    assert drawn + (int(left_out[1]) if left_out else 0) == len(drawing.edges)
    assert drawn <= 500


def test_mermaid_shows_hostile_texts_as_they_are(hostile):
    text = render(hostile, "mermaid")
    parse_mermaid(text)
    assert "%%{" not in text
    assert "<script" not in text
    comments = [line for line in text.splitlines() if line.startswith("%%")]
    assert all(SHOWN.fullmatch(line.removeprefix("%% ")) for line in comments)

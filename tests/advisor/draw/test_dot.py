"""DOT: a parser of its own reads it back, the first chain is marked, and nothing from outside is markup."""

import re
from itertools import pairwise

from drawn import NAME, TEXT

from advisor.draw import render

TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[A-Za-z_]\w*|->|[{}\[\];,=])', re.DOTALL)


def tokens(text):
    at = 0
    while text[at:].strip():
        found = TOKEN.match(text, at)
        assert found, text[at : at + 60]
        yield found[1]
        at = found.end()


def unquoted(token):
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], token[1:-1]) if token.startswith('"') else token


def parse_dot(text):
    """(attributes by node, attributes by edge) of `digraph NAME { statement; … }`."""
    words = list(tokens(text))
    assert words[0] == "digraph"
    assert (words[2], words[-1]) == ("{", "}")
    nodes, edges, at = {}, {}, 3
    while at < len(words) - 1:
        names = [unquoted(words[at])]
        while words[at + 1] == "->":
            at += 2
            names.append(unquoted(words[at]))
        at += 1
        assert words[at] == "["
        attributes = {}
        while words[at] != "]":
            assert words[at] in ("[", ",")
            assert words[at + 2] == "="
            attributes[words[at + 1]] = unquoted(words[at + 3])
            at += 4
        assert words[at + 1] == ";"
        at += 2
        (edges if len(names) > 1 else nodes)[tuple(names) if len(names) > 1 else names[0]] = attributes
    return nodes, edges


def test_dot_has_every_node_and_edge_and_marks_the_first_chain(drawing):
    nodes, edges = parse_dot(render(drawing, "dot"))
    assert {n.id for n in drawing.nodes} <= set(nodes)
    assert set(edges) == {(e.first, e.then) for e in drawing.edges}
    thick = {pair for pair, looks in edges.items() if looks.get("penwidth") == "3"}
    assert thick == set(pairwise(drawing.path))
    for no in drawing.refused:
        assert no.text in nodes[no.technique]["tooltip"]
        assert "dashed" in nodes[no.technique]["style"]
    for pair, looks in edges.items():
        edge = next(e for e in drawing.edges if (e.first, e.then) == pair)
        assert all(rule in looks["tooltip"] for rule in edge.rules)


def test_dot_means_hostile_texts_as_they_are(hostile):
    text = render(hostile, "dot")
    nodes, _ = parse_dot(text)
    assert TEXT in nodes["fp16"]["tooltip"]
    assert nodes["graph"]["label"] == f"{NAME} on server-cpu".replace("\x1b", "�")
    assert "\x1b" not in text

"""SVG: well-formed, every technique there, the first chain marked, nothing fetched, nothing from outside markup."""

from itertools import pairwise
from xml.etree import ElementTree as ET

from drawn import NAME, TEXT

from advisor.draw import render
from knowledge.techniques.catalog import CATALOG

SVG = "{http://www.w3.org/2000/svg}"


def parts(tree, kind):
    return [g for g in tree.iter(f"{SVG}g") if kind in g.get("class").split() and g.find(f"{SVG}title") is not None]


def test_svg_is_xml_with_every_technique_and_the_first_chain_marked(drawing):
    tree = ET.fromstring(render(drawing, "svg"))
    nodes = {g.get("data-id"): g for g in parts(tree, "node")}
    assert {nodes[n.id].find(f"{SVG}text").text for n in drawing.nodes if n.technique} == set(CATALOG)
    marked = {(g.get("data-first"), g.get("data-then")) for g in parts(tree, "c1")}
    assert marked == set(pairwise(drawing.path))
    assert {n for n, g in nodes.items() if "first" in g.get("class").split()} == set(drawing.path[1:-1])
    for no in drawing.refused:
        group = nodes[no.technique]
        assert "refused" in group.get("class").split()
        assert no.text in group.find(f"{SVG}title").text
        assert no.text in group.get("aria-label")
    assert len(parts(tree, "edge")) == len(drawing.edges)
    for edge in parts(tree, "strong"):
        assert edge.get("tabindex") == "0"


def test_svg_fetches_nothing_and_shows_hostile_texts_as_they_are(hostile):
    tree = ET.fromstring(render(hostile, "svg"))
    assert {e.tag.removeprefix(SVG) for e in tree.iter()} == {"svg", "title", "style", "rect", "text", "g", "path"}
    assert not [e for e in tree.iter() if any("href" in name or name.startswith("on") for name in e.attrib)]
    assert "url(" not in tree.find(f"{SVG}style").text
    fp16 = next(g for g in parts(tree, "node") if g.get("data-id") == "fp16")
    assert TEXT in fp16.find(f"{SVG}title").text
    assert NAME.replace("\x1b", "�") in tree.find(f"{SVG}title").text

"""What is drawn: every technique, the way of each ranked chain, and a sentence for every rule on an edge."""

from itertools import pairwise

from advisor.graph import EXPORT, START
from knowledge.techniques.catalog import CATALOG


def test_every_technique_is_drawn_and_the_refused_say_why(drawing):
    assert {n.technique for n in drawing.nodes} - {""} == set(CATALOG)
    refused = {n.technique: n.about for n in drawing.nodes if n.state == "refused"}
    assert set(refused) == {r.technique for r in drawing.refused}
    for no in drawing.refused:
        assert no.text in refused[no.technique]
        assert no.rule in refused[no.technique]
        assert no.remedy in refused[no.technique]
    assert not {n.id for n in drawing.nodes if n.state in ("refused", "idle")} & {
        end for edge in drawing.edges for end in (edge.first, edge.then)
    }


def test_the_path_is_the_first_chain_s(drawing):
    techniques = {n.id: n.technique for n in drawing.nodes}
    assert drawing.path == drawing.chains[0].path
    for chain in drawing.chains:
        assert (chain.path[0], chain.path[-1]) == (START, EXPORT)
        assert "+".join(techniques[n] for n in chain.path[1:-1]) == ("" if chain.id == "nothing" else chain.id)
        marked = {(e.first, e.then) for e in drawing.edges if chain.rank in e.ranks}
        assert marked == set(pairwise(chain.path))
    assert {n.id for n in drawing.nodes if n.state == "first"} == set(drawing.path[1:-1])


def test_every_rule_on_an_edge_has_its_sentence(drawing):
    named = {rule for edge in drawing.edges for rule in edge.rules}
    assert named == set(drawing.rules)
    assert all(drawing.rules.values())
    for edge in drawing.edges:
        assert all(rule in drawing.about_edge(edge) for rule in edge.rules)

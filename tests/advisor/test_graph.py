"""The graph of chains: a DAG with rising phases, refused techniques absent, and nothing better left out."""

import itertools

import networkx as nx
import pytest

from advisor.exploration import MAX_STAGES, counted, explore
from advisor.facts import facts_of
from advisor.graph import EXPORT, START, build_graph
from advisor.plans import check_stages
from advisor.predict import Predictor
from advisor.profile import profile_source
from advisor.ranking import Ranking
from advisor.request import Request
from advisor.rules import judge
from knowledge.load import load_knowledge
from knowledge.techniques.base import Family
from knowledge.techniques.catalog import CATALOG
from knowledge.values import Budget, Drop, Plan, Stage, Workload

KNOWN = load_knowledge()
REQUESTS = [
    {"arch": "transformer", "target": "mobile"},
    {"arch": "cnn"},
    {"arch": "rnn", "max_drop": "8pp"},
    {"arch": "moe"},
    {"model": "zoo:stdlib-gpt2", "max_drop": "30%"},
    {"arch": "transformer", "training": "none", "data_level": "none"},
]


def planned(**options):
    request = Request.parse(**options)
    target = KNOWN.target(request.target)
    layers = profile_source(request.model, arch=request.arch, workload=request.workload)
    settled = request.settled(layers.info, target)
    predictor = Predictor(layers, target, settled.workload, KNOWN, settled.task)
    verdicts = judge(KNOWN, facts_of(settled, predictor), predictor)
    return settled, predictor, verdicts, build_graph(verdicts)


@pytest.fixture(params=REQUESTS, ids=str)
def plan(request):
    return planned(**request.param)


def test_is_a_dag_from_start_to_export(plan):
    *_, graph = plan
    assert nx.is_directed_acyclic_graph(graph)
    assert nx.ancestors(graph, EXPORT) == set(graph) - {EXPORT}
    assert nx.descendants(graph, START) == set(graph) - {START}


def test_phases_rise_along_every_edge(plan):
    *_, graph = plan
    for first, then in graph.edges:
        assert graph.nodes[first]["phase"] < graph.nodes[then]["phase"]


def test_refused_techniques_are_absent(plan):
    _, _, verdicts, graph = plan
    refused = {r.technique for r in verdicts.refused}
    assert refused.isdisjoint(graph.nodes[n]["technique"] for n in graph)
    assert {graph.nodes[n]["technique"] for n in graph} - {"", "finetune"} <= set(verdicts.allowed)


def test_edges_carry_known_rules(plan):
    *_, graph = plan
    named = list(itertools.chain.from_iterable(rules for *_, rules in graph.edges(data="rules")))
    assert set(named) <= set(KNOWN.rules)
    assert named


def test_order_rules_stand_on_the_edges():
    *_, graph = planned(arch="transformer", max_drop="8pp")
    assert "order-quantize-last" in graph.edges["distill", "int8_dynamic"]["rules"]
    assert "order-distill-first" in graph.edges["distill", "layer_drop"]["rules"]
    assert graph.edges["layer_drop", "finetune@layer_drop"]["rules"] == ("recover-after-structure",)


def test_recovery_cannot_be_skipped_where_training_is_possible():
    *_, graph = planned(arch="cnn")
    assert list(graph.successors("channels")) == ["finetune@channels"]
    *_, without = planned(arch="cnn", training="none")
    assert EXPORT in without.successors("channels")


def test_chains_are_sane_and_make_legal_plans(plan):
    request, predictor, verdicts, graph = plan
    ranking = Ranking(request, predictor, verdicts)
    found = explore(graph, verdicts, predictor, ranking.score).candidates
    assert found
    for candidate in found:
        families = [t.family for t in candidate.techniques if t.family is not Family.RECOVER]
        assert counted(candidate.techniques) <= MAX_STAGES
        assert len(set(families)) == len(families)
        check_stages(_plan(candidate.techniques), "plan")


def _plan(techniques) -> Plan:
    stages = tuple(Stage(technique=t.id, params=t.model_dump(mode="json")) for t in techniques)
    budget = Budget(max_drop=Drop(amount=3, unit="pp"))
    return Plan(model="zoo:x", task="t", target="t", workload=Workload(), budget=budget, stages=stages)


def test_exploring_finds_what_trying_everything_finds():
    """Dominance drops chains, never the best one: the oracle tries every path with every setting."""
    request, predictor, verdicts, graph = planned(arch="cnn", max_drop="5pp")
    ranking = Ranking(request, predictor, verdicts)
    score = ranking.score
    best = max(score(c.outlook, len(c.techniques)) for c in explore(graph, verdicts, predictor, score).candidates)
    oracle = []
    for path in nx.all_simple_paths(graph, START, EXPORT):
        names = [graph.nodes[n]["technique"] for n in path[1:-1]]
        for chosen in itertools.product(*(verdicts.settings[n] for n in names)):
            if counted(chosen) <= MAX_STAGES:
                oracle.append(score(predictor.chain(chosen), len(chosen)))
    assert best == pytest.approx(max(oracle))
    assert len(oracle) > 20


def test_outlooks_on_the_way_equal_outlooks_from_the_start(plan):
    request, predictor, verdicts, graph = plan
    found = explore(graph, verdicts, predictor, Ranking(request, predictor, verdicts).score).candidates
    for candidate in found[:: max(1, len(found) // 12)]:
        again = predictor.chain(candidate.techniques)
        assert candidate.outlook.bytes == pytest.approx(again.bytes)
        assert candidate.outlook.latency.total == pytest.approx(again.latency.total)
        assert candidate.outlook.drop.mid == pytest.approx(again.drop.mid)


def test_every_technique_has_a_phase_or_recovers():
    assert {c.id for c in CATALOG.values() if c.phase is None} == {
        c.id for c in CATALOG.values() if c.family is Family.RECOVER
    }

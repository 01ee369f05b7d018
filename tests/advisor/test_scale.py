"""Many techniques and many rules: the answer comes, names a bounded number of chains, and is the best of those."""

import json
from pathlib import Path

import pytest
from typed import advisor

from advisor import exploration
from advisor.advise import advise, deliberate
from advisor.predict import Predictor
from advisor.ranking import Ranking
from advisor.request import Request
from advisor.verdicts import concerns
from benchmarks.scale import exponent, plot
from benchmarks.synthetic import add_techniques, write_rules
from knowledge.load import load_knowledge
from knowledge.techniques.catalog import CATALOG

SPARSE = Path(__file__).parent.parent / "cases" / "targets" / "sparse-engine.yaml"  # where magnitude is allowed
REQUEST = Request.parse(arch="transformer", target="mobile", top="10")


@pytest.fixture
def many(tmp_path):
    """40 techniques more and 300 rules more."""
    known = dict(CATALOG)
    add_techniques(len(known) + 40)
    write_rules(tmp_path / "rules", 300)
    yield load_knowledge(tmp_path)
    CATALOG.clear()
    CATALOG.update(known)


@pytest.fixture
def outlooks(monkeypatch):
    """How often a chain was estimated."""
    counted = []
    original = Predictor.outlook
    monkeypatch.setattr(Predictor, "outlook", lambda self, *args: counted.append(1) or original(self, *args))
    return counted


def test_an_answer_of_ten_chains_from_many_rules(many, outlooks):
    answer = advise(REQUEST, many)
    assert len(answer.chains) == 10
    assert len(many.rules) > 400
    rules = {reason.rule for chain in answer.chains for reason in chain.reasons}
    assert any(rule.startswith("synthetic-") for rule in rules)


def test_chains_beyond_the_bound_are_left_out_the_best_are_not(many, outlooks, monkeypatch):
    thought = deliberate(REQUEST, many)
    ranking = Ranking(thought.request, thought.predictor, thought.verdicts)
    whole = [r.candidate.ids for r in thought.ranked]
    for most, more in ((400, 100), (200, 50)):
        monkeypatch.setattr(exploration, "MAX_OUTLOOKS", most)
        monkeypatch.setattr(exploration, "MORE_OUTLOOKS", more)
        outlooks.clear()
        found = exploration.explore(thought.graph, thought.verdicts, thought.predictor, ranking.score).candidates
        singles = sum(len(planned) for planned in thought.verdicts.settings.values())
        assert len(outlooks) <= most + more + 2 * singles
        smallest = min(found, key=lambda candidate: candidate.outlook.bytes)
        assert smallest.outlook.bytes <= 1.1 * min(c.outlook.bytes for c in thought.candidates)
        assert ranking.order(found)[0].candidate.ids == whole[0]


@pytest.fixture
def bound(monkeypatch):
    """Sets how many chains may be estimated: the most promising, and those that compress most."""

    def set_to(most, more):
        monkeypatch.setattr(exploration, "MAX_OUTLOOKS", most)
        monkeypatch.setattr(exploration, "MORE_OUTLOOKS", more)

    return set_to


def test_an_answer_says_whether_all_chains_were_estimated(bound):
    bound(10**6, 0)
    whole, answer = deliberate(REQUEST), advise(REQUEST)
    assert answer.all_estimated
    assert answer.chains_estimated == whole.explored.estimated >= len({c.ids for c in whole.candidates})
    bound(10, 5)
    cut, answer = deliberate(REQUEST), advise(REQUEST)
    assert not answer.all_estimated
    assert answer.chains_estimated == cut.explored.estimated < whole.explored.estimated
    assert len({c.ids for c in cut.candidates}) <= cut.explored.estimated
    bound(10, 10**6)  # what the first look leaves out, the second one finds
    assert deliberate(REQUEST).explored.complete


def test_refining_counts_no_chain_twice(bound, monkeypatch):
    bound(10**6, 0)
    refined = deliberate(REQUEST).explored
    monkeypatch.setattr(exploration.Exploration, "refine", lambda self, score: None)
    plain = deliberate(REQUEST).explored
    assert len(refined.candidates) > len(plain.candidates)
    assert refined.estimated == plain.estimated


def test_the_terminal_tells_of_chains_that_were_not_looked_at(bound):
    command = ("recommend", "--arch", "cnn")
    assert "not looked at" not in advisor(*command).stdout
    bound(5, 2)
    told = json.loads(advisor(*command, "--json").stdout)
    line = f"{told['chains_estimated']} chains were estimated, the most promising first; others were not looked at."
    assert line in advisor(*command).stdout.splitlines()


def test_weights_and_edges_are_those_of_every_rule_in_turn(many):
    thought = deliberate(REQUEST, many)
    verdicts = thought.verdicts
    for candidate in thought.candidates[::10]:
        ids, compression = candidate.ids, candidate.outlook.compression
        plain = [w for _, about, w in verdicts.preferences() if concerns(about, ids, compression)]
        assert sorted(verdicts.weights(ids, compression)) == sorted(plain)
    ordered = {(first, then): rule for rule, first, then in verdicts.orders()}
    for first, then, rules in thought.graph.edges(data="rules"):
        if (first, then) in ordered:
            assert ordered[first, then] in rules
    for technique in verdicts.settings:
        needed = [
            (c.require.technique, rule.id) for rule in verdicts.fired for c in rule.then
            if c.require is not None and c.require.after.covers(technique) and c.require.technique in verdicts.settings
        ]  # fmt: skip
        found = [(name, rule) for name, rules in verdicts.required_after(technique).items() for rule in rules]
        assert sorted(found) == sorted(needed)


def test_settings_of_several_rules_narrow_together(tmp_path):
    (tmp_path / "rules").mkdir()
    rule = "- {{id: {}, then: [{{set: {{technique: magnitude, param: ratio, {}}}}}], text: So., source: me}}\n"
    said = [rule.format(*pair) for pair in (("a", "low: 0.4"), ("b", "high: 0.7"), ("c", "start: 0.5"))]
    (tmp_path / "rules" / "a.yaml").write_text("rules:\n" + "".join(said))
    request = Request.parse(arch="transformer", target=str(SPARSE))
    verdicts = deliberate(request, load_knowledge(tmp_path)).verdicts
    space = verdicts.ranges["magnitude"]["ratio"]
    assert (space.low, space.high) == (0.4, 0.7)


def test_the_benchmark_s_fit_and_plot(tmp_path):
    rows = [{"rules": n, "load_seconds": 1e-4 * n, "plan_seconds": 1e-4 * n} for n in (1000, 2000, 4000)]
    assert exponent([1000, 2000, 4000], [0.2, 0.4, 0.8]) == pytest.approx(1)
    plot(rows, tmp_path / "scale.svg")
    drawn = (tmp_path / "scale.svg").read_text()
    assert drawn.startswith("<svg")
    assert drawn.count("<circle") == 3
    assert "1.00" in drawn

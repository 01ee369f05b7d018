"""Explanations: what is known of an id, and why a chain is as it is and no other."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest
from click.testing import CliRunner

import cli
from advisor.advise import advise, deliberate
from advisor.entries import explain_claim, explain_rule, explain_target, explain_technique, mentions
from advisor.explain import explain
from advisor.graph import EXPORT, START
from advisor.request import Request
from advisor.show.explain import show_explanation
from advisor.standing import best_with, through
from advisor.why import explain_chain, find_chain, steps
from advisor.words import conclusion_text, when_text
from knowledge.load import load_knowledge
from knowledge.schema import Conclusion
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError

ROOT = Path(cli.__file__).parent
KNOWN = load_knowledge()
REQUESTS = [
    {"arch": "transformer", "target": "mobile"},
    {"arch": "cnn", "max_drop": "8pp"},
    {"arch": "rnn"},
    {"arch": "moe"},
    {"model": "zoo:digits-cnn", "max_size": "1kb"},
    {"model": "zoo:digits-cnn", "max_size": "9mb"},
    {"arch": "transformer", "training": "none", "data_level": "none"},
]
RULES = """
rules:
- {id: likes, when: {arch: cnn}, then: [{prefer: {technique: int8_static, weight: 4}}], text: t, source: s}
- {id: dislikes, when: {arch: cnn}, then: [{avoid: {family: quantize, exclude: [fp16]}}], text: t, source: s}
- {id: refuses, when: {goal: memory}, then: [{refuse: {need: calibration}}], text: t, source: s}
- {id: requires, then: [{require: {technique: graph_fusion, after: {family: quantize}}}], text: t, source: s}
- {id: sets, then: [{set: {technique: int8_static, param: calibration, value: percentile}}], text: t, source: s}
- {id: orders, then: [{before: {first: prune, then: quantize}}], text: t, source: s}
- {id: warns, then: [{warn: {technique: int8_static}}], text: t, source: s}
- {id: likes-chains, then: [{prefer: {chain: [reshape, quantize]}}], text: t, source: s}
- {id: of-others, then: [{prefer: {technique: channels}}, {warn: all}], text: t, source: s}
"""


def advisor(*args):
    return CliRunner().invoke(cli.main, [str(a) for a in args])


@pytest.fixture(scope="module", params=REQUESTS, ids=str)
def thought(request):
    return deliberate(Request.parse(**request.param), KNOWN)


@pytest.fixture
def own(tmp_path):
    """A user's folder of rules."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "own.yaml").write_text(RULES)
    return tmp_path


def test_every_condition_reads_as_a_clause_that_names_its_facts():
    for rule in KNOWN.rules.values():
        text = when_text(rule.when)
        assert all(name in text for name in rule.when if name != "any")
        assert "{" not in text
        assert "[" not in text


@pytest.mark.parametrize(
    ("when", "text"),
    [
        ({"max_drop_pp": {"lt": 2}}, "max_drop_pp is below 2 pp"),
        ({"arch": {"not": ["cnn", "rnn"]}}, "arch is neither cnn nor rnn"),
        ({"arch": {"ne": "cnn"}}, "arch is not cnn"),
        ({"model.file": False}, "model.file is no"),
        ({"target.accelerates": ["fp16", "2:4"]}, "target.accelerates includes fp16 or 2:4"),
        ({"target.accelerates": {"not": ["fp16", "2:4"]}}, "target.accelerates includes neither fp16 nor 2:4"),
        ({"arch": "cnn", "any": [{"batch": 1}, {"batch": 2}]}, "arch is cnn, and (batch is 1, or batch is 2)"),
        (
            {"any": [{"arch": "cnn", "goal": "size"}, {"batch": {"ge": 8}}]},
            "(arch is cnn, and goal is size), or batch is at least 8",
        ),
        ({"embedding_share": {"gt": 0.25}}, "embedding_share is above 25 %"),
    ],
)
def test_conditions_in_words(when, text):
    assert when_text(when) == text


@pytest.mark.parametrize(
    ("conclusion", "text"),
    [
        ({"prefer": {"family": "quantize", "weight": 0.4}}, "prefer every quantize technique (weight 0.4)"),
        ({"avoid": {"chain": ["quantize"]}}, "avoid chains of quantize alone (weight 0.5)"),
        (
            {"prefer": {"chain": [], "weight": 4}},
            "prefer doing nothing (weight 4: decides alone, wherever the chain fits)",
        ),
        ({"prefer": {"compression": [4, 10]}}, "prefer chains that compress 4 to 10 times (weight 0.5)"),
        (
            {"refuse": {"need": "training", "exclude": ["finetune"]}},
            "refuse every technique that needs training except finetune",
        ),
        (
            {"require": {"technique": "finetune", "after": {"family": "prune"}}},
            "put finetune after every prune technique",
        ),
        ({"before": {"first": "prune", "then": "fp16"}}, "put every prune technique before fp16"),
        ({"set": {"technique": "channels", "param": "ratio", "low": 0.2, "start": 0.3}},
         "start channels.ratio at 0.3, search channels.ratio from 0.2"),
        ({"set": {"technique": "int8_dynamic", "param": "embeddings", "value": True}},
         "fix int8_dynamic.embeddings at yes"),
        ({"warn": "all"}, "warn of any chain"),
    ],
)  # fmt: skip
def test_conclusions_in_words(conclusion, text):
    assert conclusion_text(Conclusion.model_validate(conclusion)) == text


def test_everything_that_is_known_can_be_explained_and_shown(capsys):
    found = [
        *(explain_technique(name, KNOWN, None) for name in CATALOG),
        *(explain_rule(rule, KNOWN, None) for rule in KNOWN.rules.values()),
        *(explain_claim(claim, KNOWN) for claim in KNOWN.claims.values()),
        *(explain_target(target, KNOWN) for target in KNOWN.targets.values()),
    ]
    for one in found:
        values = json.loads(one.model_dump_json(by_alias=True))
        assert next(iter(values)) == "schema"
        show_explanation(values)
        printed = capsys.readouterr().out
        assert one.id in printed
        assert max(len(line) for line in printed.splitlines() if "http" not in line) <= 100


def test_a_technique_tells_what_it_is_and_what_speaks_of_it(own):
    known = load_knowledge(own)
    found = {m.rule: m for m in mentions("int8_static", known)}
    ours = {"likes", "dislikes", "refuses", "requires", "sets", "orders", "warns", "likes-chains"}
    assert ours <= set(found)
    assert "of-others" not in found
    assert found["likes"].when == "arch is cnn"
    assert found["sets"].says == ("fix int8_static.calibration at percentile",)
    assert {m.rule for m in mentions("fp16", known)} & ours == {"requires", "orders", "likes-chains"}
    explained = explain_technique("int8_static", known, None)
    assert {p["name"] for p in explained.technique["params"]} == set(CATALOG["int8_static"].model_fields)
    assert {c.id for c in explained.claims} == {c.id for c in known.claims.values() if c.technique == "int8_static"}
    assert explained.here is None


def test_a_request_tells_which_rules_fire_and_what_becomes_of_a_technique(thought):
    fired = {rule.id for rule in thought.verdicts.fired}
    refused = {r.technique for r in thought.verdicts.refused}
    for technique in CATALOG:
        explained = explain_technique(technique, thought.knowledge, thought)
        assert {m.rule for m in explained.rules if m.fires} <= fired
        assert not {m.rule for m in explained.rules if not m.fires} & fired
        assert (explained.here.refused is not None) == (technique in refused)
        assert technique not in refused or explained.here.best is None
    for rule in thought.knowledge.rules.values():
        explained = explain_rule(rule, thought.knowledge, thought)
        assert explained.fires == (rule.id in fired)
        assert not explained.fires or "{" not in explained.text


def test_entries_say_in_which_line_they_are_written():
    places = [
        *((r.id, explain_rule(r, KNOWN, None).place) for r in KNOWN.rules.values()),
        *((c.id, explain_claim(c, KNOWN).place) for c in KNOWN.claims.values()),
        *((t.id, explain_target(t, KNOWN).place) for t in KNOWN.targets.values()),
    ]
    for name, place in places:
        file, _, line = place.rpartition(":")
        assert name in Path(file).read_text().splitlines()[int(line) - 1]


def test_a_target_names_the_source_of_every_figure():
    for target in KNOWN.targets.values():
        explained = explain_target(target, KNOWN)
        assert {"gflops_fp32", "bandwidth_gbps"} <= {f.name for f in explained.figures}
        assert all(f.source for f in explained.figures)
        assert explained.abilities["accelerates"] == target.accelerates


def test_a_chain_says_why_this_as_the_recommendation_does(thought):
    advice = advise(thought.request, thought.knowledge, thought.predictor.layers)
    for chain in advice.chains:
        assert find_chain(str(chain.rank), thought) == find_chain(chain.id, thought)
    explained = explain_chain(advice.chains[1].id, thought)
    assert explained.chain == advice.chains[1]
    assert explained.standing.rank == 2


def test_every_step_of_a_chain_has_a_reason_that_is_true(thought):
    ordered = {(rule, first, then) for rule, first, then in thought.verdicts.orders()}
    for ranked in thought.ranked:
        ids = ranked.candidate.ids
        order = list(steps(ranked.candidate.techniques, thought))
        assert [(s.first, s.then) for s in order] == list(itertools.pairwise(ids))
        for number, step in enumerate(order):
            assert step.phases
            before = ids[: number + 1]
            for reason in step.rules:
                asked = any(reason.rule in thought.verdicts.required_after(one).get(step.then, ()) for one in before)
                assert asked or any((reason.rule, one, step.then) in ordered for one in before)


def test_recovery_stands_where_its_rule_puts_it():
    found = explain_chain("channels+finetune+int8_static", deliberate(Request.parse(arch="cnn"), KNOWN))
    assert [[r.rule for r in step.rules] for step in found.order] == [
        ["recover-after-structure"],
        ["order-quantize-last"],
    ]
    assert "torch model" in found.order[1].phases


def test_every_technique_is_in_the_chain_or_is_told_why_not(thought):
    explained = explain_chain("1", thought)
    others = {a.technique: a for a in explained.alternatives}
    assert set(others) | set(thought.ranked[0].candidate.ids) == set(CATALOG)
    assert not set(others) & set(thought.ranked[0].candidate.ids)
    refused = {r.technique: r for r in thought.verdicts.refused}
    assert {t: a.refused for t, a in others.items() if a.refused} == {t: no for t, no in refused.items() if t in others}
    for other in others.values():
        assert (other.refused is None) == (other.by != "refusal")
        if other.best is not None:
            assert other.technique in other.best.chain.split("+")


def test_what_keeps_a_technique_out_is_true(thought):
    chosen = thought.ranked[0]
    for other in explain_chain("1", thought).alternatives:
        best = other.best
        if other.by == "limits":
            assert not best.fits
            assert all(miss.limit in other.text for miss in best.misses)
        elif other.by == "weights":
            assert best.fits
            assert best.preference < chosen.preference
            assert best.score_high >= chosen.low
            difference = sum(o.this - o.other for o in other.opinions)
            assert difference == pytest.approx(chosen.preference - best.preference)
        elif other.by == "rule":
            assert chosen.decisive
        elif other.by == "score":
            assert best.fits
            assert best.score < max(r.mid for r in thought.ranked)


def test_the_best_chain_with_a_technique_is_the_first_of_them_that_fits(thought):
    for technique in CATALOG:
        ranked = next((r for r in thought.ranked if technique in r.candidate.ids and r.fits), None)
        if ranked is not None:
            assert best_with(technique, thought) == ranked


def test_a_technique_that_exploring_left_behind_is_followed_to_the_end(thought):
    for technique in thought.verdicts.allowed:
        way = through(technique, thought.graph)
        if way is None:
            continue
        [place] = [node for node, held in way.nodes(data="technique") if held == technique]
        around = way.subgraph(set(way) - {place})
        assert nx.has_path(way, START, place)
        assert nx.has_path(way, place, EXPORT)
        assert not nx.has_path(around, START, EXPORT)
        best = best_with(technique, thought)
        assert technique in best.candidate.ids
        assert best.fits or not any(r.fits for r in thought.ranked if technique in r.candidate.ids)


def test_a_chain_behind_another_is_told_what_is_ahead():
    thought = deliberate(Request.parse(arch="cnn"), KNOWN)
    last = explain_chain(str(len(thought.ranked)), thought)
    ahead = [a for a in last.alternatives if a.best and a.best.rank and a.best.rank < last.standing.rank]
    assert ahead
    assert all("is ahead" in a.text for a in ahead)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["chanels"], "did you mean channels"),
        (["order-quantise-last"], "did you mean order-quantize-last"),
        (["no such thing at all"], "no technique, rule, claim or target has this id"),
        (["technique-no-gain"], "explain the technique"),
        (["1"], "there is no request"),
        (["distill+int8_dynamic"], "there is no request"),
        (["rule:channels"], "no technique, rule"),
        (["channels", "--target", "mobile"], "neither a model nor an architecture"),
        (["0", "--arch", "cnn"], "ranks go from 1 to"),
        (["9999", "--arch", "cnn"], "ranks go from 1 to"),
        (["9" * 5000, "--arch", "cnn"], "ranks go from 1 to"),
        (["distil+int8_static", "--arch", "cnn"], "did you mean distill"),
        (["layer_drop+int8_static", "--arch", "cnn"], "layer_drop is refused by technique-architecture"),
        (["int8_static+channels", "--arch", "cnn"], "did you mean channels+"),
        (["channels", "--arch", "cnnn"], "did you mean cnn"),
        (["nowhere.yaml"], "no such file"),
        (["channels", "--knowledge", "nowhere"], "no such folder"),
        ([], "ID"),
    ],
)
def test_bad_ids_get_one_line_with_the_way_out(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = advisor("explain", *args)
    assert shown.exit_code == 2
    assert said in shown.stderr
    assert shown.stderr.strip().count("\n") == 0
    assert shown.stdout == ""


def test_an_id_that_means_two_things_is_asked_about(own):
    text = RULES.replace("id: likes,", "id: int8_static,").replace("id: warns", "id: mobile")
    (own / "rules" / "own.yaml").write_text(text)
    with pytest.raises(InputError, match="is a technique and a rule; write technique:int8_static or rule:int8_static"):
        explain("int8_static", knowledge=own)
    assert explain("rule:int8_static", knowledge=own).kind == "rule"
    assert explain("technique:int8_static", knowledge=own).kind == "technique"
    assert explain("target:mobile", knowledge=own).kind == "target"
    assert explain("chain:int8_static", Request.parse(arch="cnn", knowledge=str(own))).kind == "chain"


def test_a_target_file_is_explained(tmp_path):
    file = tmp_path / "mine.yaml"
    source = Path(KNOWN.origin["targets/edge"].rpartition(":")[0])
    file.write_text(source.read_text().replace("id: edge", "id: mine"))
    explained = explain(str(file))
    assert (explained.kind, explained.id) == ("target", "mine")


@pytest.mark.parametrize(
    "args",
    [["1", "--arch", "transformer", "--target", "mobile"], ["nothing", "zoo:digits-cnn"], ["2", "--arch", "cnn"]],
    ids=str,
)
def test_the_command_shows_why_this_in_this_order_and_not_that(args):
    shown = advisor("explain", *args)
    assert shown.exit_code == 0
    found = json.loads(advisor("explain", *args, "--json").stdout)
    assert found["schema"] == "advisor.explanation/1"
    assert "\nWhy this\n" in shown.stdout
    assert ("\nWhy in this order\n" in shown.stdout) == bool(found["order"])
    assert "\nRefused\n" in shown.stdout
    flat = " ".join(shown.stdout.split())
    for other in found["alternatives"]:
        assert other["technique"] in flat
    for reason in found["chain"]["reasons"]:
        assert reason["rule"] in flat
    assert max(len(line) for line in shown.stdout.splitlines() if "http" not in line) <= 100


def test_texts_of_a_user_s_rules_cannot_steer_the_terminal(own):
    text = 'rules:\n- {id: steers, then: [{warn: all}], text: "red \\e[31m [bold]x[/bold]", source: "\\e]0;t\\a"}\n'
    (own / "rules" / "own.yaml").write_text(text)
    shown = advisor("explain", "steers", "--knowledge", own)
    assert shown.exit_code == 0
    assert "\x1b" not in shown.stdout
    assert "[bold]x[/bold]" in shown.stdout


@pytest.mark.parametrize("words", [["explain", "1"], ["explain", "int8_static"], ["graph"]], ids=" ".join)
def test_explaining_and_drawing_import_no_framework(words):
    heavy = ("torch", "transformers", "onnx", "onnxruntime", "optuna", "sklearn", "jinja2")
    script = f"""
import sys
sys.argv = ["advisor", *{words!r}, "--arch", "cnn"]
import cli
try:
    cli.main()
except SystemExit as ended:
    assert ended.code == 0, ended.code
found = [name for name in {heavy!r} if name in sys.modules]
assert not found, found
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

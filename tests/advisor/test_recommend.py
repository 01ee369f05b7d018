"""Decisions as case files: the request, what must come first, what must be said, what must be refused."""

import json
from functools import cache
from pathlib import Path

import pytest

from advisor.advise import advise
from advisor.evidence import add, forget
from advisor.plans import check_stages
from advisor.profile import profile_source
from advisor.proposal import to_plan
from advisor.recommendation import Recommendation
from advisor.request import Request
from knowledge.conditions import holds
from knowledge.layers import table_from_json
from knowledge.load import load_knowledge
from knowledge.measured import load_evidence
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError

CASES = Path(__file__).parent.parent / "cases"
KNOWN = load_knowledge()


def load_cases():
    for path in sorted(CASES.glob("*.json")):
        for case in json.loads(path.read_text()):
            yield pytest.param(case, id=f"{path.stem}-{case['id']}")


def ask(table: str = "", evidence: int = 0, **options) -> Recommendation:
    """The answer to a request. `table` stands in for the model's files, as it lies beside the cases; `evidence` of the
    shipped measurements of the model count as the user's own."""
    return _answered(json.dumps(options, sort_keys=True), table, evidence)


@cache
def _answered(asked: str, table: str, evidence: int) -> Recommendation:
    options = json.loads(asked)
    if options.get("target", "").endswith(".yaml"):
        options["target"] = str(CASES / "targets" / options["target"])
    layers = table_from_json(json.loads((CASES / "tables" / table).read_text())) if table else None
    own = [row for row in load_evidence() if row.model == options.get("model")][:evidence]
    assert add(own) == evidence
    try:
        return advise(Request.parse(**options), KNOWN, layers=layers)
    finally:
        if own:
            forget(ids=[row.id for row in own])


def answer_to(case) -> Recommendation:
    return ask(case.get("table", ""), case.get("evidence", 0), **case["request"])


def fired(answer: Recommendation) -> set[str]:
    facts = {name: tuple(value) if isinstance(value, list) else value for name, value in answer.facts.items()}
    return {rule.id for rule in KNOWN.rules.values() if holds(rule.when, facts)}


@pytest.mark.parametrize("case", load_cases())
def test_decision(case):
    answer = answer_to(case)
    first = answer.chains[0]
    assert case["says"]
    if case["families"] is not None:
        assert [s.family for s in first.stages] == case["families"], [c.id for c in answer.chains]
    assert set(case["rules"]) <= {r.rule for r in first.reasons}
    assert set(case.get("fired", ())) <= fired(answer)
    assert not set(case.get("silent", ())) & fired(answer)
    refused = {r.technique: r for r in answer.refused}
    assert set(case["refused"]) <= set(refused)
    assert not set(case.get("allowed", ())) & set(refused)
    for technique, rule in case.get("refused_by", {}).items():
        assert refused[technique].rule == rule
    for technique in case.get("avoided", ()):
        assert technique not in [s.technique for s in first.stages]
    if wanted := case.get("first"):
        assert first.stages[0].technique == wanted["technique"]
        assert wanted.get("params", {}).items() <= first.stages[0].params.items()
    if (fits := case.get("fits", True)) is not None:  # None: the estimates lie on both sides of the limit
        assert first.fits == fits
    assert set(case.get("misses", ())) <= {m.limit for m in first.misses}


@pytest.mark.parametrize("case", load_cases())
def test_decision_in_words(case):
    answer = answer_to(case)
    first = answer.chains[0]
    shown = {s.technique for c in answer.chains for s in c.stages}
    assert set(case.get("anywhere", ())) <= shown, [c.id for c in answer.chains]
    for key, texts in (
        ("told", [r.text for r in first.reasons]),
        ("warned", list(first.warnings)),
        ("changes", [f"{c.option} {c.text}" for c in answer.changes]),
    ):
        for part in case.get(key, ()):
            assert any(part in text for text in texts), texts


@pytest.mark.parametrize("case", load_cases())
def test_every_answer_is_sound(case):
    answer = answer_to(case)
    refused = {r.technique for r in answer.refused}
    assert answer.nearest == ("" if answer.fits else answer.chains[0].id)
    assert all(r.text and r.source for r in answer.refused)
    ids = [c.id for c in answer.chains]
    assert len(set(ids)) == len(ids)
    for chain in answer.chains:
        assert not refused & {s.technique for s in chain.stages}
        assert all(r.text and r.source and "{" not in r.text for r in chain.reasons)
        assert not any("unknown" in r.text.split() for r in chain.reasons)  # a sentence stands on facts that are known
        assert chain.fits == (not chain.misses)
        assert all(m.missing > 0 for m in chain.misses)
        for figure in (getattr(chain.estimate, name) for name in type(chain.estimate).model_fields):
            assert figure.low <= figure.mid <= figure.high
            assert figure.unit
            assert figure.basis
        check_stages(to_plan(chain, answer), "plan")
    fits = [c.fits for c in answer.chains]
    assert fits == sorted(fits, reverse=True)


def test_every_rule_fires_in_a_case():
    seen = set().union(*(fired(answer_to(param.values[0])) for param in load_cases()))
    assert seen == set(KNOWN.rules)


def test_every_technique_is_recommended_in_a_case():
    answers = [answer_to(param.values[0]) for param in load_cases()]
    shown = {s.technique for answer in answers if answer.request.top <= 12 for c in answer.chains for s in c.stages}
    assert shown == set(CATALOG)


def test_no_rule_says_the_same_as_another():
    texts = [rule.text for rule in KNOWN.rules.values()]
    assert len(set(texts)) == len(texts)


def test_an_exported_file_takes_only_techniques_on_files():
    table = profile_source("zoo:minilm")
    answer = advise(Request.parse(model="model.onnx", max_drop="2%"), KNOWN, layers=table)
    assert all(CATALOG[s.technique].level == "graph" for c in answer.chains for s in c.stages)
    assert {r.technique: r.rule for r in answer.refused}["distill"] == "file-only"


def test_a_decisive_rule_needs_no_tie():
    answer = ask(arch="cnn", max_size="150MB")
    assert (answer.chains[0].id, answer.chains[0].fits) == ("nothing", True)
    assert "ranking" not in {r.rule for r in answer.chains[0].reasons}


def test_a_tie_that_rules_broke_is_told():
    answer = ask(arch="cnn", max_drop="1pp")
    told = {r.rule: r.text for r in answer.chains[0].reasons}
    assert "overlap" in told["ranking"]


def test_chains_out_of_reach_are_listed_only_where_nothing_fits():
    answer = ask(model="zoo:minilm", max_drop="0.7%", top=50)
    assert answer.fits
    assert all(c.estimate.quality_drop.low <= 0.7 for c in answer.chains)
    hopeless = ask(arch="cnn", max_size="1KB")
    assert hopeless.nearest == hopeless.chains[0].id
    assert {m.limit for m in hopeless.chains[0].misses} == {"size"}
    assert hopeless.chains[0].misses[0].missing > 1e6


ARCHITECTURES = ("transformer-", "cnn-", "rnn-")
LEAVES = [  # question of the framework by the names of its rules, request, the rules of that question that must fire
    ("deploy-", {"arch": "cnn", "target": "edge"}, {"deploy-edge-mobile"}),
    ("deploy-", {"arch": "cnn", "target": "mobile"}, {"deploy-edge-mobile"}),
    ("deploy-", {"arch": "cnn", "target": "browser"}, {"deploy-browser"}),
    ("deploy-", {"arch": "cnn", "target": "server-cpu"}, {"deploy-server"}),
    ("deploy-", {"arch": "cnn", "target": "rack.yaml"}, {"deploy-on-premises"}),
    (
        ARCHITECTURES,
        {"arch": "transformer"},
        {
            "transformer-primary-distillation",
            "transformer-secondary-layers",
            "transformer-secondary-quantization",
            "transformer-avoid-unstructured",
        },
    ),
    (ARCHITECTURES, {"arch": "cnn"}, {"cnn-primary-channels", "cnn-secondary-int8", "cnn-tertiary-distillation"}),
    (
        ARCHITECTURES,
        {"arch": "rnn"},
        {
            "rnn-primary-quantization",
            "rnn-secondary-hidden-dimension",
            "rnn-distills-poorly",
            "rnn-avoid-unstructured",
        },
    ),
    (
        "hardware-",
        {"arch": "cnn", "target": "mobile"},
        {"hardware-standard-structured", "hardware-standard-no-unstructured"},
    ),
    (
        "hardware-",
        {"arch": "cnn", "target": "a100"},
        {"hardware-standard-structured", "hardware-ampere-needs-pattern"},
    ),
    ("hardware-", {"arch": "cnn", "target": "sparse-engine.yaml"}, {"hardware-sparse-runtime"}),
    ("quality-", {"arch": "cnn", "max_drop": "1pp"}, {"quality-conservative"}),
    ("quality-", {"arch": "rnn", "max_drop": "1.9%"}, {"quality-conservative"}),
    ("quality-", {"arch": "cnn", "max_drop": "2pp"}, {"quality-moderate-cnn"}),
    ("quality-", {"arch": "cnn", "max_drop": "5pp"}, {"quality-moderate-cnn"}),
    (
        "quality-",
        {"arch": "transformer", "max_drop": "3pp"},
        {"quality-moderate-structures", "quality-moderate-transformer"},
    ),
    ("quality-", {"model": "zoo:stdlib-lm", "max_drop": "3%"}, {"quality-moderate-relative"}),
    ("quality-", {"arch": "rnn", "max_drop": "3pp"}, {"quality-moderate-rnn"}),
    ("quality-", {"arch": "cnn", "max_drop": "6pp"}, {"quality-aggressive"}),
    ("quality-", {"arch": "transformer", "max_drop": "6pp"}, {"quality-aggressive"}),
    ("quality-", {"arch": "rnn", "max_drop": "6pp"}, {"quality-aggressive-rnn"}),
    ("combine-", {"arch": "cnn"}, set()),
    ("combine-", {"arch": "cnn", "max_size": "5MB"}, {"combine-for-ratio"}),
    (
        "order-",
        {"arch": "transformer"},
        {"order-distill-first", "order-reshape-before-zeros", "order-quantize-last"},
    ),
]


@pytest.mark.parametrize(("question", "request_", "rules"), LEAVES)
def test_every_leaf_of_the_framework_fires_its_rules_and_no_others(question, request_, rules):
    answer = ask(**request_)
    assert {rule for rule in fired(answer) if rule.startswith(question)} == rules


def test_the_leaves_are_the_whole_framework():
    framework = {r.id for r in KNOWN.rules.values() if r.tree == "Compression Decision Framework"}
    assert framework
    assert set().union(*(rules for *_, rules in LEAVES)) == framework


def test_answer_as_json_has_the_documented_shape():
    answer = ask(arch="transformer", target="mobile").to_json()
    assert next(iter(answer)) == "schema"
    assert set(answer) >= {"schema", "request", "facts", "profile", "chains", "refused", "nearest"}
    chain = answer["chains"][0]
    assert set(chain) >= {"rank", "id", "stages", "estimate", "fits", "reasons", "warnings"}
    assert set(chain["stages"][0]) >= {"technique", "family", "params"}
    assert set(chain["estimate"]) == {"size_bytes", "compression", "speedup", "latency_ms", "quality_drop"}
    assert json.loads(json.dumps(answer)) == answer


def test_what_was_assumed_is_named():
    answer = ask(arch="cnn")
    text = " ".join(answer.defaults)
    for word in ("resnet-50", "image-classification", "server-cpu", "3 pp", "overall", "full", "labeled", "batch 1"):
        assert word in text
    told = ask(
        arch="cnn", task="image-classification", target="mobile", max_drop="2pp", goal="size", training="full",
        data_level="labeled", batch=1, threads=2,
    )  # fmt: skip
    assert [a.split(":")[0] for a in told.defaults] == ["model", "size", "memory"]


def test_same_request_same_answer():
    assert ask(arch="transformer", target="edge").to_json() == ask(arch="transformer", target="edge").to_json()


def test_more_to_spend_never_means_a_larger_file():
    for arch in ("transformer", "cnn", "rnn"):
        sizes = [
            ask(arch=arch, target="mobile", max_drop=drop, goal="size").chains[0].estimate.size_bytes.mid
            for drop in ("2", "4", "8")
        ]
        assert sizes == sorted(sizes, reverse=True)


def test_goal_decides_what_comes_first():
    small = ask(arch="transformer", goal="size", max_drop="4pp").chains[0].estimate
    safe = ask(arch="transformer", goal="quality", max_drop="4pp").chains[0].estimate
    assert small.size_bytes.mid < safe.size_bytes.mid
    assert safe.quality_drop.mid < small.quality_drop.mid


@pytest.mark.parametrize("model", ["zoo:stdlib-lm", "zoo:digits-cnn", "zoo:digits-lstm", "zoo:minilm"])
def test_where_quality_is_all_that_was_asked_for_what_loses_nothing_comes_first(model):
    answer = ask(model=model, goal="quality")
    drops = [chain.estimate.quality_drop.mid for chain in answer.chains if chain.fits]
    harmless = [drop <= 0.02 for drop in drops]
    assert harmless[0]
    assert harmless == sorted(harmless, reverse=True)
    assert any(r.rule == "ranking" and "lose nothing" in r.text for r in answer.chains[0].reasons)
    limited = ask(model=model, goal="quality", max_size="1GB").chains[0]  # limits say what the loss is for
    assert not any("lose nothing" in r.text for r in limited.reasons)


def test_departures_from_the_seeds_are_told():
    answer = ask(arch="cnn")
    assert any("Common advice" in reason.text for reason in answer.chains[0].reasons)


def test_user_rules_are_laid_over_ours(tmp_path):
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "mine.yaml").write_text(
        "rules:\n- id: no-students-here\n  when: {arch: transformer}\n  then: [{refuse: {technique: distill}}]\n"
        "  text: We may not train on user data.\n  source: our privacy office\n"
    )
    answer = advise(Request.parse(arch="transformer", target="mobile", knowledge=str(tmp_path)))
    assert {r.technique: r.source for r in answer.refused}["distill"] == "our privacy office"
    assert all(s.technique != "distill" for c in answer.chains for s in c.stages)


def test_plan_holds_what_was_asked():
    answer = ask(model="zoo:digits-cnn", max_drop="2pp", max_size="1MB", seed=7)
    plan = to_plan(answer.chains[0], answer)
    assert (plan.model, plan.task, plan.seed) == ("zoo:digits-cnn", "image-classification", 7)
    assert (plan.budget.max_drop.amount, plan.budget.max_drop.unit) == (2.0, "pp")
    assert plan.budget.max_size_bytes == 1_000_000
    assert [s.technique for s in plan.stages] == [s.technique for s in answer.chains[0].stages]


@pytest.mark.parametrize(
    ("options", "field", "text"),
    [
        ({"arch": "cnn", "target": "mobil"}, "target", "mobile"),
        ({"arch": "transfomer"}, "arch", "transformer"),
        ({"arch": "cnn", "max_drop": "-1"}, "max-drop", "below zero"),
        ({"arch": "cnn", "max_size": "50XB"}, "max-size", "unit"),
        ({"arch": "cnn", "goal": "speed"}, "goal", "known"),
        ({"arch": "cnn", "task": "detection"}, "task", "not supported yet"),
        ({"arch": "cnn", "task": "image-clasification"}, "task", "image-classification"),
        ({"arch": "cnn", "batch": "0"}, "batch", "below 1"),
        ({"arch": "cnn", "params": "7B", "model": "zoo:minilm"}, "params", "leave one"),
        ({"model": "zoo:stdlib-lm", "max_drop": "2pp"}, "max-drop", "2%"),
        ({"model": "zoo:minilm", "seq_len": "100000"}, "seq-len", "at most"),
        ({}, "model", "--arch"),
        ({"arch": "cnn", "image_size": "a"}, "image-size", "whole number"),
        ({"arch": "cnn", "sized": "a"}, "sized", "unknown option"),
        ({"arch": "cnn", "knowledge": "/nowhere"}, "knowledge", "no such folder"),
    ],
)
def test_bad_requests_are_one_line(options, field, text):
    with pytest.raises(InputError) as error:
        advise(Request.parse(**options))
    line = str(error.value)
    assert line.startswith(f"{field}:")
    assert text in line
    assert "\n" not in line


def test_units_are_read():
    request = Request.parse(
        arch="cnn", max_drop="2%", max_size="50MB", max_latency="20ms", max_memory="1GB", params="60M"
    )
    assert (request.max_drop, request.max_drop_unit) == (2.0, "%")
    assert (request.max_size_bytes, request.max_latency_ms, request.max_memory_bytes) == (
        50_000_000,
        20.0,
        1_000_000_000,
    )
    assert request.params == 60_000_000
    assert Request.parse(arch="cnn", image_size="28x28").image_size == (3, 28, 28)

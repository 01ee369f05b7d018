"""Facts and verdicts: the vocabulary is filled, rules refuse, order, require and set, and each no has a reason."""

import pytest

from advisor.facts import facts_of
from advisor.predict import Predictor
from advisor.profile import profile_source
from advisor.request import Request
from advisor.rules import dial_values, judge
from advisor.verdicts import concerns
from knowledge.conditions import VOCABULARY
from knowledge.load import load_knowledge
from knowledge.schema import Selector
from knowledge.techniques.base import Range
from knowledge.techniques.catalog import CATALOG

KNOWN = load_knowledge()


def verdicts(**options):
    request = Request.parse(**options)
    target = KNOWN.target(request.target)
    layers = profile_source(request.model, arch=request.arch, task=request.task, workload=request.workload)
    settled = request.settled(layers.info, target)
    predictor = Predictor(layers, target, settled.workload, KNOWN, settled.task)
    return judge(KNOWN, facts_of(settled, predictor), predictor)


@pytest.mark.parametrize(
    "options", [{"arch": a} for a in ("transformer", "cnn", "rnn", "moe")] + [{"model": "zoo:minilm"}]
)
def test_facts_fill_the_vocabulary_with_its_kinds(options):
    facts = verdicts(**options).facts
    assert set(facts) == set(VOCABULARY)
    kinds = {"number": float, "flag": bool, "list": tuple, "choice": str, "name": str}
    for name, value in facts.items():
        if value is not None:
            assert type(value) is kinds[VOCABULARY[name].kind], name
            if VOCABULARY[name].values and isinstance(value, str):
                assert value in VOCABULARY[name].values


def test_accuracy_and_relative_budgets_are_different_facts():
    accuracy, perplexity = verdicts(arch="cnn").facts, verdicts(model="zoo:stdlib-lm").facts
    assert (accuracy["max_drop_pp"], accuracy["max_drop_percent"]) == (3.0, None)
    assert (perplexity["max_drop_pp"], perplexity["max_drop_percent"]) == (None, 3.0)


def test_shares_say_where_the_model_is():
    cnn, encoder = verdicts(arch="cnn").facts, verdicts(model="zoo:minilm").facts
    assert cnn["conv_share"] > 0.9
    assert encoder["conv_share"] == 0
    assert 0.4 < encoder["embedding_share"] < 0.6
    assert verdicts(model="zoo:digits-dwcnn").facts["overhead_share"] > cnn["overhead_share"]


def test_limits_become_ratios():
    facts = verdicts(arch="transformer", max_size="43.8MB", max_latency="20ms").facts
    assert facts["wanted_ratio"] == pytest.approx(10, rel=0.01)
    assert facts["wanted_speedup"] > 2
    assert facts["fits_already"] is False
    assert verdicts(arch="cnn", max_size="1GB").facts["fits_already"] is True


def test_a_rule_refuses_before_the_technique_does():
    refused = {r.technique: r for r in verdicts(arch="cnn").refused}
    assert refused["int8_dynamic"].rule == "dynamic-int8-slows-convolutions"
    assert "100 %" in refused["int8_dynamic"].text
    assert refused["layer_drop"].rule == "technique-architecture"
    assert all(r.source for r in refused.values())


def test_allowed_and_refused_cover_the_catalog():
    for arch in ("transformer", "cnn", "rnn", "moe"):
        found = verdicts(arch=arch)
        names = {r.technique for r in found.refused}
        assert names.isdisjoint(found.allowed)
        assert names | set(found.allowed) | {"finetune"} == set(CATALOG)


def test_what_changes_nothing_is_refused():
    refused = {r.technique: r for r in verdicts(arch="rnn").refused}
    assert refused["int8_static"].rule == "technique-no-gain"


def test_a_student_that_cannot_be_built_is_refused_with_the_limit():
    found = verdicts(model="zoo:minilm")  # half of it is an embedding that stays
    students = [t.compression for t in found.settings.get("distill", ())]
    assert all(compression < 2 for compression in students)


def test_recovery_is_required_where_it_can_be_had():
    assert "finetune" in verdicts(arch="cnn").required_after("channels")
    assert verdicts(arch="cnn", training="none").required_after("channels") == {}
    assert verdicts(arch="cnn").required_after("int8_static") == {}


def test_settings_start_and_narrow():
    assert verdicts(model="zoo:minilm").settings["int8_dynamic"][0].smooth == 0.8
    assert verdicts(model="zoo:minilm", data_level="none").settings["int8_dynamic"][0].smooth == 0.0
    assert "smooth" in verdicts(model="zoo:minilm", data_level="none").ranges["int8_dynamic"]


def test_planned_settings_stay_inside_their_ranges():
    for arch in ("transformer", "cnn", "rnn", "moe"):
        for name, planned in verdicts(arch=arch).settings.items():
            dial = CATALOG[name].space().get(CATALOG[name].dial)
            for technique in planned:
                if isinstance(dial, Range):
                    assert dial.low <= getattr(technique, technique.dial) <= dial.high


def test_dial_values_are_on_the_grid():
    assert dial_values(Range(0.1, 0.7, step=0.05), 0.5) == [0.3, 0.5, 0.6]
    assert dial_values(Range(0.2, 0.6, step=0.1), 0.9) == [0.6]


def test_selectors():
    chain = ("distill", "layer_drop", "finetune", "int8_dynamic", "graph_fusion")
    assert concerns(Selector(chain=("distill", "reshape", "quantize")), chain, 10)
    assert not concerns(Selector(chain=("distill", "quantize")), chain, 10)
    assert concerns(Selector(chain=()), ("graph_fusion",), 1)
    assert concerns(Selector(compression=(4, 10)), chain, 10)
    assert concerns(Selector(need="training"), chain, 1)
    assert not concerns(Selector(family="quantize", exclude=("int8_dynamic",)), chain, 1)

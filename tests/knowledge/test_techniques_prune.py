import numpy as np
import pytest
from pydantic import ValidationError

from knowledge.layers import LayerTable, ModelInfo
from knowledge.shapes import embedding, linear
from knowledge.techniques.catalog import CATALOG, build
from knowledge.techniques.patterns import kept_of, names, pattern_strength
from knowledge.techniques.prune import GradualPruning, IterativePruning, Magnitude
from knowledge.techniques.prune_once import SparseGpt, Wanda
from knowledge.values import Decision, InputError, Stage

INFO = ModelInfo("m", "transformer", "causal-lm", blocks=11)
LAYERS = LayerTable.of(
    [
        {**embedding("embed", 100, 64), "role": "token_embedding"},
        {**linear("layers.1.up", 32, 64, 8, bias=False), "role": "ffn_up", "block": 1},
        {**linear("layers.10.up", 32, 64, 8, bias=False), "role": "ffn_up", "block": 10},
        {**linear("layers.10.odd", 32, 6, 8, bias=False), "role": "ffn_down", "block": 10},
        {**linear("lm_head", 100, 64, 8, bias=False), "role": "head", "tied_to": "embed"},
    ],
    INFO,
)


@pytest.mark.parametrize("cls", [Wanda, SparseGpt])
def test_one_shot_pruning_leaves_heads_and_embeddings(cls):
    pruned = cls(ratio=0.6).effect(LAYERS)
    assert pruned.density.tolist() == [1, 0.4, 0.4, 0.4, 1]
    assert set(pruned.pattern[1:4]) == {"unstructured"}
    assert (pruned.parameters, pruned.macs, pruned.stored_bytes) == (
        LAYERS.parameters,
        LAYERS.macs,
        LAYERS.stored_bytes,
    )


@pytest.mark.parametrize("cls", [Wanda, SparseGpt])
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_a_pattern_fixes_the_ratio_and_needs_inputs_that_it_divides(cls, pattern):
    pruned = cls(pattern=pattern, ratio=0.8).effect(LAYERS)
    assert pruned.density.tolist() == [1, 0.5, 0.5, 1, 1]
    assert pruned.pattern.tolist() == ["dense", pattern, pattern, "dense", "dense"]
    odd = LAYERS.keep(LAYERS.path == "layers.10.odd")
    refusal = next(cls(pattern=pattern).refusals(odd))
    assert refusal.required == f"dense layers whose inputs divide by {kept_of(pattern)[1]}"
    assert list(cls().refusals(odd)) == []


def test_a_decision_gives_densities_and_the_pattern():
    decision = Decision(technique="wanda", density={"layers.1.up": 0.5}, pattern="2:4")
    real = Wanda(pattern="2:4").effect(LAYERS, decision)
    assert real.density.tolist() == [1, 0.5, 1, 1, 1]
    assert real.pattern[1] == "2:4"
    assert Magnitude().effect(LAYERS, Decision(technique="magnitude", density={"layers.1.up": 0.3})).density[1] == 0.3


@pytest.mark.parametrize("cls", [Wanda, GradualPruning, IterativePruning])
def test_ratios_by_layer_go_by_whole_path_parts_and_the_first_that_fits(cls):
    given = cls.model_validate({"ratio": 0.6, "layer_ratios": {"layers.1": 0.3, "layers.*.up": 0.4}})
    assert given.effect(LAYERS).density[1:4].tolist() == [0.7, 0.6, 0.4]
    assert given == cls.model_validate(given.model_dump(mode="json"))
    assert hash(given) == hash(cls.model_validate(given.model_dump()))
    assert given.strength() == pytest.approx((0.6 + 0.3 + 0.4) / 3)
    with pytest.raises(ValidationError):
        cls.model_validate({"layer_ratios": {"layers.1": 1.0}})


@pytest.mark.parametrize("cls", [Wanda, SparseGpt, Magnitude, GradualPruning])
def test_ratios_of_layers_that_are_none_of_the_model_are_refused_by_name(cls):
    given = cls.model_validate({"layer_ratios": {"layers.1": 0.3, "layers.100": 0.3, "lm_heads": 0.2}})
    (refusal,) = given.refusals(LAYERS)
    assert refusal.rule == "prune-names-no-layer"
    assert refusal.observed == "layer_ratios: layers.100, lm_heads names no layer that it prunes"
    assert not list(cls.model_validate({"layer_ratios": {"layers.1": 0.3}}).refusals(LAYERS))


def test_a_pattern_and_ratios_by_layer_are_refused_together():
    both = Wanda.model_validate({"pattern": "2:4", "layer_ratios": {"layers.1": 0.3}})
    assert [r.rule for r in both.refusals(LAYERS)] == ["prune-two-ratios"]


def test_names_are_compared_part_by_part():
    assert names("up", "layers.1.up")
    assert not names("up", "layers.1.up_proj")
    assert not names("layers.1.up.more", "layers.1.up")


def test_patterns_cost_more_the_less_choice_they_leave():
    free, loose, tight = (Wanda(pattern=p).strength() for p in ("unstructured", "4:8", "2:4"))
    assert free < loose < tight
    assert free == 0.5
    assert pattern_strength("unstructured", 0.8) == 0.8


@pytest.mark.parametrize("schedule", ["cubic", "linear"])
def test_gradual_pruning_ends_exactly_at_its_ratio(schedule):
    gradual = GradualPruning(ratio=0.9, schedule=schedule)
    ratios = [gradual.ratio_at(t) for t in np.linspace(0, 1, 11)]
    assert ratios[0] == 0
    assert ratios[-1] == 0.9
    assert ratios == sorted(ratios)
    assert gradual.ratio_at(0.5) == pytest.approx({"cubic": 0.9 * 0.875, "linear": 0.45}[schedule])


@pytest.mark.parametrize("rounds", [1, 3, 5])
def test_iterative_rounds_multiply_to_the_ratio(rounds):
    iterative = IterativePruning(ratio=0.5, rounds=rounds)
    assert (1 - iterative.round_share()) ** rounds == pytest.approx(0.5)
    assert iterative.effect(LAYERS).density.tolist() == [1, 0.5, 0.5, 0.5, 1]


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "gradual_pruning", "iterative_pruning"])
def test_a_higher_ratio_leaves_fewer_weights_and_never_more_bytes(name):
    tables = [CATALOG[name](ratio=ratio).effect(LAYERS) for ratio in (0.3, 0.5, 0.8)]
    assert [t.sparsity for t in tables] == sorted(t.sparsity for t in tables)
    assert {t.stored_bytes for t in tables} == {LAYERS.stored_bytes}
    strengths = [CATALOG[name](ratio=ratio).strength() for ratio in (0.3, 0.5, 0.8)]
    assert strengths == sorted(set(strengths))


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "magnitude"])
@pytest.mark.parametrize("pattern", ["1:4", "3:4", "8:16", "31:32"])
def test_any_pattern_up_to_32_neighbors_can_be_planned_with(name, pattern):
    technique = build(Stage(technique=name, params={"pattern": pattern}))
    kept, among = kept_of(pattern)
    pruned = technique.effect(LAYERS)
    assert pruned.density[1] == kept / among
    assert pruned.pattern[1] == pattern
    assert technique == type(technique).model_validate(technique.model_dump(mode="json"))


def test_patterns_without_quotes_are_what_yaml_made_of_them():
    assert Wanda(pattern=124).pattern == "2:4"  # 2 · 60 + 4
    assert SparseGpt(pattern=8 * 60 + 16).pattern == "8:16"


@pytest.mark.parametrize("pattern", ["4:4", "5:4", "0:4", "16:33", "2-4", "2:4:8", "two", ":", 7, True])
def test_what_is_no_pattern_is_told_in_one_line(pattern):
    with pytest.raises(InputError, match=r"stages\.wanda\.pattern: ") as raised:
        build(Stage(technique="wanda", params={"pattern": pattern}))
    assert "\n" not in str(raised.value)


def test_search_chooses_among_the_usual_patterns_and_no_allocation_with_one():
    assert set(Wanda.space()["pattern"]) == {"unstructured", "2:4", "4:8"}
    assert Wanda.together({"pattern": "2:4", "allocation": "outliers"})["allocation"] == "uniform"
    assert Wanda.together({"pattern": "unstructured", "allocation": "outliers"})["allocation"] == "outliers"


@pytest.mark.parametrize(
    ("cls", "given"),
    [
        (Wanda, {"pattern": "1:4", "allocation": "outliers"}),
        (SparseGpt, {"allocation": "sensitivity", "layer_ratios": {"layers.1": 0.3}}),
        (Wanda, {"max_loss": 0.1, "pattern": "2:4"}),
        (SparseGpt, {"max_loss": 0.1, "allocation": "sensitivity", "layer_ratios": {"layers.1": 0.3}}),
        (Magnitude, {"pattern": "2:4", "threshold": 0.1}),
        (Magnitude, {"threshold": 0.1, "layer_ratios": {"layers.1": 0.3}}),
    ],
)
def test_two_things_that_set_the_ratios_are_refused(cls, given):
    assert [r.rule for r in cls.model_validate(given).refusals(LAYERS)] == ["prune-two-ratios"]


def test_an_allocation_is_expected_to_keep_the_ratio():
    assert (
        Wanda(ratio=0.6, allocation="sensitivity").effect(LAYERS).sparsity == Wanda(ratio=0.6).effect(LAYERS).sparsity
    )


def test_a_budget_of_loss_is_shared_out_by_any_allocation_and_expected_as_the_ratio():
    for allocation in ("uniform", "outliers", "sensitivity"):
        asked = Wanda(ratio=0.6, max_loss=0.05, allocation=allocation)
        assert not list(asked.refusals(LAYERS))
        assert (asked.strength(), asked.effect(LAYERS).sparsity) == (0.6, Wanda(ratio=0.6).effect(LAYERS).sparsity)
    assert "max_loss" not in Wanda.space()
    for impossible in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match=r"stages\.wanda\.max_loss: "):
            build(Stage(technique="wanda", params={"max_loss": impossible}))


def test_layers_by_losses_may_be_farther_from_the_ratio_than_blocks_by_outliers():
    assert [Wanda(allocation=a).farthest() for a in ("outliers", "sensitivity")] == [0.08, 0.15]
    assert Wanda(allocation="sensitivity", bound=0.05).farthest() == 0.05


def test_magnitude_takes_ratios_by_layer():
    technique = Magnitude.model_validate({"ratio": 0.6, "layer_ratios": {"layers.1": 0.3}})
    assert technique.effect(LAYERS).density[1:4].tolist() == [0.7, 0.4, 0.4]


def test_one_shot_pruning_of_convolutions_leaves_groups_and_heads():
    def conv(path, inputs, groups=1):
        return {"path": path, "kind": "conv", "outputs": 8, "inputs": inputs, "kernel": 9, "groups": groups}

    rows = [conv("stem", 3), conv("body", 8), conv("depthwise", 8, 8), {**linear("fc", 10, 64, 1), "role": "head"}]
    cnn = LayerTable.of(rows, ModelInfo("m", "cnn", "image-classification"))
    assert Wanda(ratio=0.5).effect(cnn).density.tolist() == [0.5, 0.5, 1, 1]
    assert SparseGpt(pattern="2:4").effect(cnn).density.tolist() == [1, 0.5, 1, 1]
    assert list(Wanda().refusals(cnn)) == []
    assert "outliers" not in Wanda.space_for(cnn)["allocation"]
    recurrent = LayerTable.of([linear("fc", 10, 64, 1)], ModelInfo("m", "rnn", "sequence-classification"))
    assert [r.rule for r in Wanda().refusals(recurrent)] == ["technique-architecture"]


def test_a_factor_narrower_than_a_group_stays_whole():
    thin = LayerTable.of([{**linear("fc", 32, 64, 1), "rank": 6}], INFO)
    assert [r.rule for r in Wanda(pattern="2:4").refusals(thin)] == ["technique-no-layer"]
    assert list(Wanda(pattern="1:2").refusals(thin)) == []


def test_what_sparsegpt_rounds_takes_its_bytes_and_loses_more():
    joint = SparseGpt(ratio=0.5, bits=3, group_size=32)
    table = joint.effect(LAYERS)
    assert table.density.tolist() == [1, 0.5, 0.5, 0.5, 1]
    assert table.bits.tolist() == [32, 4, 4, 32, 32]  # 6 inputs make no group
    assert table.stored_bytes < LAYERS.stored_bytes
    strengths = [SparseGpt(ratio=0.5, bits=bits).strength() for bits in (32, 8, 4, 3, 2)]
    assert strengths == sorted(set(strengths))

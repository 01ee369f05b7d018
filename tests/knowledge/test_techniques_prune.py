import numpy as np
import pytest
from pydantic import ValidationError

from knowledge.layers import LayerTable, ModelInfo
from knowledge.shapes import embedding, linear
from knowledge.techniques.catalog import CATALOG
from knowledge.techniques.patterns import kept_of, names, pattern_strength
from knowledge.techniques.prune import GradualPruning, IterativePruning, Magnitude
from knowledge.techniques.prune_once import SparseGpt, Wanda
from knowledge.values import Decision

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


def test_one_shot_pruning_is_for_transformers():
    cnn = LayerTable.of([linear("fc", 10, 64, 1)], ModelInfo("m", "cnn", "image-classification"))
    assert [r.rule for r in Wanda().refusals(cnn)] == ["technique-architecture"]
    assert list(GradualPruning().refusals(cnn)) == []

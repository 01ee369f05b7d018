import math

import pytest
from pydantic import ValidationError

from knowledge.deploy import deployed
from knowledge.layers import LayerTable, ModelInfo
from knowledge.shapes import conv, embedding, linear, llama, mixtral
from knowledge.techniques.calibrated import Awq, Gptq
from knowledge.techniques.catalog import CATALOG
from knowledge.techniques.factorize import Svd
from knowledge.techniques.groups import Nf4, WeightOnly, rounding_loss
from knowledge.techniques.mixed import ExpertsInt4, MixedPrecision
from knowledge.techniques.quantize import Bf16, ComplexInt8, Fp16, Int8Dynamic, Int8Static, Qat
from knowledge.values import Decision, LayerFormat

DECODER = ModelInfo("m", "transformer", "causal-lm", subfamily="decoder", blocks=1)
LM = LayerTable.of(
    [
        {**embedding("embed", 100, 64), "role": "token_embedding"},
        {**linear("layers.0.up", 24, 64, 8), "role": "ffn_up", "block": 0},
        {**linear("layers.0.down", 64, 24, 8, bias=False), "role": "ffn_down", "block": 0},
        {**linear("lm_head", 100, 64, 8, bias=False), "role": "head"},
    ],
    DECODER,
)
TIED = LM.change(LM.path == "lm_head", tied_to="embed")
CNN = LayerTable.of(
    [
        {**conv("c1", 16, 8, 3, 4), "role": "stem"},
        {"path": "b1", "kind": "norm", "outputs": 16, "bias": 16, "buffers": 32, "folds_into": "c1"},
        conv("c2", 16, 16, 3, 4),
        {**linear("fc", 10, 16, 1), "role": "head"},
    ],
    ModelInfo("m", "cnn", "image-classification"),
)
COMPLEX = LayerTable.of(
    [
        {**embedding("embed", 100, 64), "role": "token_embedding"},
        {"path": "core", "kind": "complex", "outputs": 16, "inputs": 64, "copies": 2, "positions": 16.0},
        {**linear("lm_head", 100, 64, 8, bias=False), "role": "head"},
    ],
    ModelInfo("m", "transformer", "causal-lm", subfamily="complex"),
)
SIZES = {
    "blocks": 4, "hidden_size": 128, "ffn_size": 256, "heads": 4, "kv_heads": 2, "vocab_size": 1000,
    "max_length": 64, "seq_len": 8, "experts": 4, "experts_per_token": 2,
}  # fmt: skip
MOE = mixtral(SIZES, {"name": "m", "family": "moe", "task": "causal-lm"})
LLAMA = llama(SIZES, {"name": "m", "family": "transformer", "task": "causal-lm"})


def stored(table, path):
    return float(table.row_bytes[table.index(path)])


# -- groups of a few bits, by hand -----------------------------------------------------------------


def test_bytes_of_four_bit_weights_with_zero_points():
    table = WeightOnly(group_size=32).effect(LM)
    # 64 × 4 bits, 2 fp32 scales and 2 zero points of 4 bits for each of 24 rows, 24 fp32 biases
    assert stored(table, "layers.0.up") == 24 * (32 + 8 + 1) + 96
    assert stored(table, "layers.0.down") == 64 * 24 * 4  # narrower than a group: left alone
    assert stored(table, "embed") == stored(table, "lm_head") == 100 * (64 + 2 * 4 + 2)  # 8 bits
    assert table.parameters == LM.parameters


def test_bytes_of_four_bit_weights_without_zero_points():
    table = WeightOnly(group_size=64, symmetric=True, embedding_bits=4).effect(LM)
    assert stored(table, "layers.0.up") == 24 * (32 + 4) + 96
    assert stored(table, "embed") == 100 * (32 + 4)
    assert set(table.zero_bits) == {0}


def test_groups_are_stored_whole_and_zero_points_in_whole_bytes():
    odd = LM.change(LM.path == "layers.0.up", inputs=72)  # 3 groups of 32, the last one filled up
    assert stored(WeightOnly(group_size=32).effect(odd), "layers.0.up") == 24 * (3 * 16 + 3 * 4 + 2) + 96


@pytest.mark.parametrize(("bits", "container"), [(8, 8), (4, 4), (3, 4), (2, 2)])
def test_three_bits_are_stored_in_four(bits, container):
    table = WeightOnly(bits=bits, group_size=64, symmetric=True).effect(LM)
    assert stored(table, "layers.0.up") == 24 * (64 * container // 8 + 4) + 96


def test_a_group_of_128_takes_more_than_four_bits_a_weight():
    wide = LayerTable.of([{**linear("up", 512, 1024, 1, bias=False), "role": "ffn_up"}], DECODER)
    assert WeightOnly().effect(wide).stored_bytes * 8 / wide.parameters == pytest.approx(4 + (32 + 4) / 128)
    assert Nf4().effect(wide).stored_bytes * 8 / wide.parameters == pytest.approx(4 + 32 / 64)


def test_a_head_that_reads_the_embedding_shares_its_bytes():
    table = WeightOnly(group_size=32).effect(TIED)
    head = table.index("lm_head")
    assert (table.bits[head], table.row_bytes[head]) == (8, 0)
    left = WeightOnly(group_size=32, embedding_bits=32).effect(TIED)
    assert (left.bits[head], stored(left, "embed")) == (32, 100 * 64 * 4)


def test_embeddings_take_the_largest_groups_that_their_lookup_knows():
    wide = WeightOnly(group_size=128).effect(LLAMA)
    assert wide.group_size[wide.index("model.embed_tokens")] == 64
    assert wide.group_size[wide.index("lm_head")] == 128
    odd = LLAMA.change(LLAMA.path == "model.embed_tokens", inputs=144)
    found = WeightOnly(group_size=128).effect(odd)
    assert found.group_size[found.index("model.embed_tokens")] == 16


def test_both_factors_of_a_layer_are_grouped():
    factored = LM.change(LM.path == "layers.0.up", rank=16)
    assert stored(WeightOnly(group_size=16, symmetric=True).effect(factored), "layers.0.up") == (
        16 * (32 + 4 * 4) + 24 * (8 + 4) + 96
    )
    assert stored(WeightOnly(group_size=32).effect(factored), "layers.0.up") == 16 * (64 + 24) * 4 + 96


@pytest.mark.parametrize("cls", [WeightOnly, Gptq, Awq, Nf4, ExpertsInt4, MixedPrecision])
def test_groups_that_no_layer_is_wide_enough_for_are_refused_with_the_size_that_fits(cls):
    narrow = MOE if cls is ExpertsInt4 else LLAMA
    refusal = next(cls(group_size=256).refusals(narrow.change(narrow.inputs > 96, inputs=96)))
    assert refusal.rule == "quantize-group-too-large"
    assert refusal.observed == "layers at most 96 wide"
    assert refusal.remedy == f"set {cls.id}.group_size to 64"
    assert list(cls(group_size=64).refusals(narrow)) == []


@pytest.mark.parametrize("cls", [WeightOnly, Gptq, Awq, Nf4])
def test_models_without_dense_layers_are_refused(cls):
    only = LM.keep(LM.kind == "embedding")
    assert [r.rule for r in cls().refusals(only)] == ["technique-no-layer"]
    assert [r.rule for r in cls().refusals(CNN)] == ["technique-architecture"]


def test_group_sizes_that_do_not_fit_are_not_searched():
    assert WeightOnly.space_for(LM)["group_size"] == (64, 32)
    assert "embedding_bits" not in WeightOnly.space_for(LM.keep(LM.kind == "linear"))
    assert WeightOnly.space_for(LLAMA)["group_size"] == (128, 64, 32)


def test_rows_of_nf4_divide_into_whole_groups():
    uneven = LM.change(LM.path == "layers.0.up", inputs=80)
    table = Nf4(group_size=32).effect(uneven)
    assert table.bits[table.index("layers.0.up")] == 32
    assert stored(Nf4(group_size=32).effect(LM), "layers.0.up") == 24 * (32 + 2 * 4) + 96


def test_a_decision_gives_each_layer_its_own_format():
    formats = {"layers.0.up": LayerFormat(bits=4, group_size=32, scale_bits=32, zero_bits=4)}
    for cls in (WeightOnly, Gptq, Awq, Nf4, MixedPrecision):
        real = cls().effect(LM, Decision(technique=cls.id, formats=formats))
        assert stored(real, "layers.0.up") == 24 * (32 + 8 + 1) + 96
        assert stored(real, "embed") == 100 * 64 * 4


def test_bits_that_no_kernel_has_are_refused():
    with pytest.raises(ValidationError):
        WeightOnly(bits=5)
    with pytest.raises(ValidationError):
        WeightOnly(group_size=48)


# -- experts, mixed precision ----------------------------------------------------------------------


def test_bytes_of_four_bit_experts():
    table = ExpertsInt4(group_size=128).effect(MOE)
    up, down = (f"model.layers.0.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj"))
    assert stored(table, up) == 4 * 512 * (128 // 2 + 4)  # 4 experts, each row one group with an fp32 scale
    assert stored(table, down) == 4 * 128 * (256 // 2 + 2 * 4)
    assert stored(table, "model.layers.0.mlp.gate") == 4 * 128 * 4  # the router stays
    assert stored(table, "model.layers.0.self_attn.q_proj") == 128 * (128 + 4)
    left = ExpertsInt4(dense_bits=32, embedding_bits=32).effect(MOE)
    assert set(left.bits[left.kind != "experts"]) == {32}


@pytest.mark.parametrize("cls", [Gptq, Awq])
def test_bytes_of_experts_that_data_round(cls):
    table = cls(group_size=32, bits=3).effect(MOE)
    up, down = (f"model.layers.0.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj"))
    # 3 bits in 4, fp32 scales and 4-bit zero points of every 32 weights
    assert stored(table, up) == 4 * 512 * (128 // 2 + 4 * 4 + 2)
    assert stored(table, down) == 4 * 128 * (256 // 2 + 8 * 4 + 4)
    assert stored(table, "model.layers.0.self_attn.q_proj") == 128 * (128 // 2 + 4 * 4 + 2)
    assert stored(table, "model.layers.0.mlp.gate") == 4 * 128 * 4


def test_experts_stay_in_float_where_no_kernel_gives_their_numbers_or_that_is_asked_for():
    experts = MOE.kind == "experts"
    for technique, rule in (
        (Gptq(bits=8, accuracy_level=0), "groups-experts-in-integers"),
        (Awq(bits=2, accuracy_level=0), "groups-experts-in-integers"),
        (Gptq(group_size=256), "experts-whole-groups"),
        (WeightOnly(), "groups-stacked-experts"),
        (Gptq(include_experts=False), ""),
    ):
        assert set(technique.effect(MOE).bits[experts]) == {32}
        assert (technique.experts_in_float() or ("",))[0] == rule
    assert set(Gptq(bits=8).effect(MOE).bits[experts]) == {8}
    assert Gptq(include_experts=False).effect(LLAMA).rows() == Gptq().effect(LLAMA).rows()


def test_groups_that_divide_no_expert_are_refused_with_those_that_do():
    odd = MOE.keep(MOE.kind != "linear").change(MOE.keep(MOE.kind != "linear").kind == "experts", inputs=160)
    for cls in (Gptq, Awq, ExpertsInt4, MixedPrecision):
        refusal = next(cls(group_size=128).refusals(odd))
        assert (refusal.rule, refusal.observed) == ("experts-whole-groups", "experts 160 wide")
        assert refusal.remedy == f"set {cls.id}.group_size to 32"
    assert [r.rule for r in Gptq(group_size=32, include_experts=False).refusals(odd)] == ["technique-no-layer"]


def test_mixed_precision_keeps_the_ends_of_the_model_wide():
    table = MixedPrecision(share=0.5).effect(LLAMA)
    dense = (table.kind == "linear") & (table.block >= 0)
    assert set(table.bits[dense]) == {4, 8}
    blocks = [set(table.bits[dense & (table.block == b)].tolist()) for b in range(4)]
    assert blocks[0] == blocks[3] == {8}
    weights = LLAMA.weights[dense]
    assert weights[table.bits[dense] == 4].sum() / weights.sum() == pytest.approx(0.5, abs=0.1)
    assert set(MixedPrecision(share=1.0).effect(LLAMA).bits[dense]) == {4}


def test_mixed_precision_of_convolutions_is_eight_bits_or_float():
    table = MixedPrecision(share=0.5, group_size=16).effect(CNN)
    assert sorted(table.bits[table.kind == "conv"]) == [8, 32]
    assert stored(MixedPrecision(share=1.0).effect(CNN), "c2") == 16 * 16 * 9 + 16 * (4 + 1)


# -- 16 and 8 bits ---------------------------------------------------------------------------------


def test_both_halves_take_two_bytes_a_number():
    assert Bf16().effect(LM).stored_bytes == Fp16().effect(LM).stored_bytes == LM.stored_bytes / 2


def test_training_for_integers_gives_the_file_of_static_quantization():
    trained, static = deployed(Qat().effect(CNN)), Int8Static().effect(deployed(CNN))
    assert trained.rows() == static.rows()
    assert Qat().effect(LM).stored_bytes == Int8Static().effect(LM).stored_bytes
    recurrent = LM.with_info(family="rnn")
    assert [r.rule for r in Qat().refusals(recurrent)] == ["technique-architecture"]


def test_both_parts_of_a_complex_core_have_scales_of_their_own():
    table = ComplexInt8().effect(COMPLEX)
    assert stored(table, "core") == 2 * 16 * 64 + 2 * 16 * (4 + 1)
    assert stored(table, "embed") == 100 * 64 + 100 * (4 + 1)
    assert list(ComplexInt8().refusals(COMPLEX)) == []
    assert set(ComplexInt8(embeddings=False).effect(COMPLEX).bits) == {8, 32}


@pytest.mark.parametrize(
    "table", [LM, CNN, MOE, COMPLEX.keep(COMPLEX.kind != "complex")], ids=["lm", "cnn", "moe", "real"]
)
def test_models_that_compute_in_real_numbers_are_refused(table):
    assert [r.rule for r in ComplexInt8().refusals(table)] == ["quantize-no-complex-core"]


# -- strengths -------------------------------------------------------------------------------------


def test_each_bit_counts_fourfold_and_smaller_groups_help():
    assert rounding_loss(3, 128) == 4 * rounding_loss(4, 128)
    assert rounding_loss(4, 32) < rounding_loss(4, 128) == 1
    assert WeightOnly(symmetric=True).strength() > WeightOnly().strength()
    assert math.isclose(WeightOnly(bits=8).strength(), 4**-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("weight_only", [{"bits": bits} for bits in (8, 4, 3, 2)]),
        ("gptq", [{"group_size": size} for size in (16, 32, 64, 128)]),
        ("awq", [{"symmetric": False}, {"symmetric": True}]),
        ("nf4", [{"group_size": size} for size in (16, 32, 64, 128)]),
        ("mixed_precision", [{"share": share} for share in (0.5, 0.6, 0.8, 1.0)]),
        ("experts_int4", [{"symmetric": False}, {"symmetric": True}]),
    ],
)
def test_more_strength_never_takes_more_bytes(name, settings):
    steps = [CATALOG[name](**given) for given in settings]
    strengths = [step.strength() for step in steps]
    assert strengths == sorted(set(strengths))
    sizes = [step.effect(MOE).stored_bytes for step in steps]
    assert sizes == sorted(sizes, reverse=True)


def test_grouping_a_factored_model_counts_what_is_left():
    factored = Svd(ratio=0.5, min_width=32).effect(LLAMA)
    grouped = WeightOnly(group_size=32).effect(factored)
    assert grouped.stored_bytes < WeightOnly(group_size=32).effect(LLAMA).stored_bytes < LLAMA.stored_bytes


# -- layers that stay in float ---------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Int8Dynamic, Int8Static])
def test_a_share_in_float_takes_as_many_weights_as_fit_and_loses_less(cls):
    owned = (LLAMA.kind == "linear") & LLAMA.owned
    kept = (cls(float_share=0.2).effect(LLAMA).bits == 32) & owned
    assert 0.15 < LLAMA.weights[kept].sum() / LLAMA.weights[owned].sum() <= 0.2
    sizes = [cls(float_share=share).effect(LLAMA).stored_bytes for share in (0.0, 0.1, 0.2)]
    assert sizes == sorted(set(sizes))
    strengths = [cls(float_share=share, smooth=smooth).strength() for share, smooth in ((0, 0), (0.1, 0), (0.2, 0.5))]
    assert strengths[0] == 1.0
    assert strengths == sorted(set(strengths), reverse=True)


def test_the_share_in_float_is_searched_only_where_there_are_layers_that_can_stay():
    assert "float_share" in Int8Static.space_for(CNN)
    assert "float_share" in Int8Dynamic.space_for(LLAMA)
    assert "float_share" not in Int8Dynamic.space_for(CNN.keep(CNN.kind == "conv"))

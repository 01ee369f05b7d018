from dataclasses import replace

import pytest

from knowledge.layers import LayerTable, ModelInfo
from knowledge.roles import assign
from knowledge.shapes import bert, llama, lstm, mixtral, resnet, vit
from knowledge.techniques.architecture import ArchitectureSearch
from knowledge.techniques.catalog import CATALOG
from knowledge.techniques.entries import Experts, Vocabulary
from knowledge.techniques.narrow import Heads, HiddenUnits, Neurons, Width
from knowledge.values import Decision, Shape, StudentShape

SIZES = {
    "blocks": 2, "hidden_size": 32, "ffn_size": 64, "heads": 4, "kv_heads": 2, "vocab_size": 100,
    "max_length": 64, "seq_len": 8, "classes": 2,
}  # fmt: skip
GIVEN = {"name": "tiny", "task": "causal-lm"}
LLAMA = llama(SIZES, {**GIVEN, "family": "transformer"})
MOE = mixtral({**SIZES, "experts": 4, "experts_per_token": 2}, {**GIVEN, "family": "moe"})
BERT = bert(SIZES, {"name": "tiny", "family": "transformer", "task": "text-classification"})
VIT = vit(
    {**SIZES, "image": 8, "channels": 1, "patch": 2}, {**GIVEN, "family": "transformer", "task": "image-classification"}
)
LSTM = lstm(
    {"layers": 2, "hidden_size": 8, "features": 5, "classes": 3, "seq_len": 4},
    {"name": "tiny", "family": "rnn", "task": "sequence-classification"},
)
CNN = resnet(
    {"width": 8, "stages": [1, 1], "classes": 5, "image": 32, "channels": 3},
    {"name": "tiny", "family": "cnn", "task": "image-classification"},
)


def sides(table, path):
    row = table.index(path)
    return int(table.outputs[row]), int(table.inputs[row])


def shapes_of(table, *roles):
    chosen = [i for i, role in enumerate(table.role) if role in roles]
    return {table.path[i]: Shape(outputs=int(table.outputs[i]), inputs=int(table.inputs[i])) for i in chosen}


# -- heads, neurons, width -------------------------------------------------------------------------


def test_heads_go_in_whole_groups():
    half = Heads(ratio=0.5).effect(LLAMA)  # 4 query heads in 2 groups, 8 wide each
    here = "model.layers.1.self_attn"
    assert sides(half, f"{here}.q_proj") == (16, 32)
    assert sides(half, f"{here}.k_proj") == sides(half, f"{here}.v_proj") == (8, 32)
    assert sides(half, f"{here}.o_proj") == (32, 16)
    assert (half.info.heads, half.info.kv_heads, half.info.head_dim) == (2, 1, 8)
    assert half.parameters == LLAMA.parameters - 2 * (16 * 32 + 8 * 32 + 8 * 32 + 32 * 16)
    assert Heads(ratio=0.1).effect(LLAMA).info.kv_heads == 1  # at least one goes


def test_the_decision_on_heads_gives_the_same_table_as_its_ratio():
    expected = Heads(ratio=0.5).effect(LLAMA)
    roles = ("attention_q", "attention_k", "attention_v", "attention_o")
    decision = Decision(technique="heads", shapes=shapes_of(expected, *roles))
    real = Heads(ratio=0.5).effect(LLAMA, decision)
    assert real.rows() == expected.rows()
    assert (real.info.heads, real.info.kv_heads) == (2, 1)


def test_biases_of_heads_go_with_them():
    half = Heads(ratio=0.5).effect(BERT)  # 4 heads of 8
    query = half.index("bert.encoder.layer.0.attention.self.query")
    assert (half.outputs[query], half.bias[query]) == (16, 16)
    assert half.parameters == BERT.parameters - 2 * 4 * 16 * 32 - 2 * 3 * 16


def test_norms_of_single_heads_are_used_as_often_as_there_are_heads():
    rows = [*LLAMA.rows(), {"path": "model.layers.0.self_attn.q_norm", "kind": "norm", "outputs": 8, "positions": 32.0}]
    table = LayerTable.of(rows, LLAMA.info)
    half = Heads(ratio=0.5).effect(table)
    assert half.positions[-1] == 16
    assert half.outputs[-1] == 8


def test_heads_that_do_not_divide_are_refused():
    uneven = LLAMA.with_info(heads=5, kv_heads=2)
    assert [r.rule for r in Heads().refusals(uneven)] == ["heads-do-not-divide"]
    shared = llama({**SIZES, "kv_heads": 1}, {**GIVEN, "family": "transformer"})
    assert [r.rule for r in Heads().refusals(shared)] == ["heads-one-group"]
    assert list(Heads().refusals(LLAMA)) == []


def test_neurons_go_from_both_sides_of_the_feed_forward_layers():
    fewer = Neurons(ratio=0.5, round_to=8).effect(LLAMA)
    assert sides(fewer, "model.layers.0.mlp.up_proj") == sides(fewer, "model.layers.0.mlp.gate_proj") == (32, 32)
    assert sides(fewer, "model.layers.0.mlp.down_proj") == (32, 32)
    assert fewer.info.ffn_size == 32
    assert fewer.parameters == LLAMA.parameters - 2 * 3 * 32 * 32


def test_neurons_of_experts_go_from_every_expert():
    fewer = Neurons(ratio=0.5, round_to=8).effect(MOE)
    assert sides(fewer, "model.layers.0.mlp.experts.gate_up_proj") == (64, 32)
    assert sides(fewer, "model.layers.0.mlp.experts.down_proj") == (32, 32)
    assert fewer.parameters == MOE.parameters - 2 * 4 * 3 * 32 * 32


def test_the_decision_on_neurons_may_differ_by_layer():
    decision = Decision(technique="neurons", shapes={"model.layers.0.mlp.up_proj": Shape(outputs=40, inputs=32)})
    real = Neurons().effect(LLAMA, decision)
    assert sides(real, "model.layers.0.mlp.up_proj") == (40, 32)
    assert sides(real, "model.layers.1.mlp.up_proj") == (64, 32)


def test_width_thins_everything_but_the_heads():
    thin = Width(ratio=0.5, round_to=8).effect(LLAMA)
    here = "model.layers.0"
    assert sides(thin, f"{here}.self_attn.q_proj") == (32, 16)
    assert sides(thin, f"{here}.self_attn.o_proj") == (16, 32)
    assert sides(thin, f"{here}.mlp.down_proj") == (16, 32)
    assert sides(thin, "model.embed_tokens") == sides(thin, "lm_head") == (100, 16)
    assert sides(thin, "model.norm") == (16, 1)
    assert (thin.info.hidden_size, thin.info.ffn_size, thin.info.head_dim) == (16, 32, 8)
    decided = Width().effect(LLAMA, Decision(technique="width", shapes=shapes_of(thin, *set(thin.role))))
    assert decided.rows() == thin.rows()
    assert decided.info == thin.info


def test_the_width_of_vectors_stays():
    assert [r.rule for r in Width().refusals(BERT.with_info(task="embedding"))] == ["width-is-the-output"]
    assert list(Width().refusals(BERT)) == []


def test_layers_without_known_names_are_refused():
    plain = LayerTable.of(
        [{"path": "a", "kind": "linear", "outputs": 8, "inputs": 8}], ModelInfo("m", "transformer", "t")
    )
    for technique in (Heads(), Neurons(), Width()):
        assert [r.rule for r in technique.refusals(plain)] == ["technique-no-layer"]


def test_half_the_hidden_units_leave_a_quarter_of_the_recurrent_weights():
    half = HiddenUnits(ratio=0.5).effect(LSTM)
    assert sides(half, "lstm.weight_ih_l0") == (16, 5)
    assert sides(half, "lstm.weight_hh_l0") == sides(half, "lstm.weight_hh_l1") == (16, 4)
    assert sides(half, "fc") == (3, 4)
    assert half.bias.tolist() == [16, 16, 16, 16, 3]
    expected = shapes_of(half, "input", "hidden", "head")
    decided = HiddenUnits().effect(LSTM, Decision(technique="hidden_units", shapes=expected))
    assert (decided.rows(), decided.info) == (half.rows(), half.info)
    assert [r.rule for r in HiddenUnits().refusals(LLAMA)] == ["technique-architecture"]


# -- experts, vocabulary ---------------------------------------------------------------------------


def test_half_the_experts_halve_their_bytes_and_leave_the_arithmetic():
    half = Experts(ratio=0.5).effect(MOE)
    stack = half.index("model.layers.0.mlp.experts.gate_up_proj")
    assert (half.copies[stack], half.info.experts, half.info.experts_per_token) == (2, 2, 2)
    assert sides(half, "model.layers.0.mlp.gate") == (2, 32)
    assert half.parameters == MOE.parameters - 2 * (2 * 3 * 64 * 32 + 2 * 32)
    assert half.row_macs[stack] == MOE.row_macs[stack]
    alone = Experts(ratio=0.75).effect(MOE)  # fewer than each token wants
    assert alone.row_macs[stack] == MOE.row_macs[stack] / 2
    assert (alone.info.experts, alone.info.experts_per_token) == (1, 1)


def test_the_decision_on_experts_may_differ_by_layer():
    left = {"model.layers.0.mlp.experts.gate_up_proj": 3, "model.layers.0.mlp.gate": 3}
    real = Experts(threshold=0.05).effect(MOE, Decision(technique="experts", experts=left))
    assert real.copies[real.index("model.layers.0.mlp.experts.gate_up_proj")] == 3
    assert real.copies[real.index("model.layers.1.mlp.experts.gate_up_proj")] == 4
    assert sides(real, "model.layers.0.mlp.gate") == (3, 32)


def test_how_many_experts_a_threshold_removes_is_unknown_until_the_router_has_run():
    unknown = Experts(threshold=0.05)
    assert unknown.effect(MOE) is MOE
    assert unknown.strength() == 0


def test_experts_are_refused_where_there_are_none():
    assert [r.rule for r in Experts().refusals(LLAMA)] == ["technique-architecture"]
    single = MOE.change(MOE.kind == "experts", copies=1)
    assert [r.rule for r in Experts().refusals(single)] == ["technique-no-layer"]


def test_half_the_vocabulary_shrinks_the_embedding_and_the_head():
    half = Vocabulary(ratio=0.5, round_to=10).effect(LLAMA)
    assert sides(half, "model.embed_tokens") == sides(half, "lm_head") == (50, 32)
    assert half.parameters == LLAMA.parameters - 2 * 50 * 32
    assert half.info.vocab_size == 50
    tied = LLAMA.change(LLAMA.path == "lm_head", tied_to="model.embed_tokens")
    assert tied.parameters - Vocabulary(ratio=0.5, round_to=10).effect(tied).parameters == 50 * 32
    shapes = {p: Shape(outputs=60, inputs=32) for p in ("model.embed_tokens", "lm_head")}
    real = Vocabulary().effect(LLAMA, Decision(technique="vocabulary", shapes=shapes))
    assert (sides(real, "lm_head"), real.info.vocab_size) == ((60, 32), 60)


def test_a_classifier_loses_words_and_no_classes():
    half = Vocabulary(ratio=0.5, round_to=10).effect(BERT)
    assert sides(half, "classifier") == sides(BERT, "classifier")
    assert sides(half, "bert.embeddings.position_embeddings") == (64, 32)
    assert sides(half, "bert.embeddings.word_embeddings") == (50, 32)


def test_a_vocabulary_that_is_absent_or_tiny_is_refused():
    assert [r.rule for r in Vocabulary().refusals(VIT)] == ["technique-no-layer"]
    assert [r.rule for r in Vocabulary(round_to=100).refusals(LLAMA)] == ["vocabulary-too-small"]


# -- architecture search ---------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("table", [LLAMA, MOE, BERT, VIT, CNN, LSTM], ids=lambda t: t.info.subfamily or t.info.family)
def test_the_result_keeps_the_budget_and_no_candidate_that_does_is_larger(table, share):
    technique = ArchitectureSearch(latency_share=share)
    refusals = list(technique.refusals(table))
    found = technique.effect(table)
    if refusals:
        assert [r.rule for r in refusals] == ["architecture-none-fits"]
        assert all(c.macs > share * table.macs for c in technique.candidates(table))
    else:
        assert found.macs <= share * table.macs
        fitting = [c.macs for c in technique.candidates(table) if c.macs <= share * table.macs]
        assert found.macs == max(fitting)


def test_a_budget_that_nothing_meets_is_refused_with_the_share():
    wide = ArchitectureSearch(latency_share=0.2, widths=(1.0,), depths=(0.5,))
    refusal = next(wide.refusals(LLAMA))
    assert refusal.rule == "architecture-none-fits"
    assert refusal.required == "at most 20 %"


def test_resolution_is_a_matter_of_convolutional_models_that_pool():
    smaller = ArchitectureSearch(widths=(1.0,), resolutions=(0.5,)).candidates(CNN)
    assert [c.table.info.image_size for c in smaller] == [(3, 16, 16)]
    stem = smaller[0].table.index("conv1")
    assert (CNN.positions[stem], smaller[0].table.positions[stem]) == (256, 64)
    assert smaller[0].parameters == CNN.parameters
    flat = CNN.change(CNN.kind == "linear", inputs=4 * CNN.inputs[-1])  # reads every position
    assert {c.table.info.image_size for c in ArchitectureSearch().candidates(flat)} == {(3, 32, 32)}
    assert {c.table.info.image_size for c in ArchitectureSearch().candidates(VIT)} == {VIT.info.image_size}


def test_the_decision_of_a_search_is_its_winner():
    decision = Decision(
        technique="architecture_search",
        student=StudentShape(blocks=1, hidden_size=16, ffn_size=32, heads=2, kv_heads=1),
    )
    real = ArchitectureSearch().effect(LLAMA, decision)
    assert (real.info.blocks, real.info.hidden_size, real.info.heads) == (1, 16, 2)
    smaller = ArchitectureSearch().effect(CNN, Decision(technique="architecture_search", image_size=(3, 24, 24)))
    assert smaller.info.image_size == (3, 24, 24)
    assert smaller.positions[smaller.index("conv1")] == 144


def test_candidates_are_built_once_for_a_table():
    assert ArchitectureSearch().candidates(LLAMA) is ArchitectureSearch(latency_share=0.3).candidates(LLAMA)


# -- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "table"),
    [("heads", LLAMA), ("neurons", LLAMA), ("width", LLAMA), ("hidden_units", LSTM), ("experts", MOE),
     ("vocabulary", LLAMA), ("layer_drop", LLAMA), ("channels", CNN), ("architecture_search", LLAMA)],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_more_strength_never_leaves_more(name, table):
    cls = CATALOG[name]
    space = cls.space()[cls.dial]
    steps = [cls(**{cls.dial: space.low + share * (space.high - space.low)}) for share in (0, 0.25, 0.5, 0.75, 1)]
    ordered = sorted(steps, key=lambda t: t.strength())
    assert len({t.strength() for t in steps}) == 5
    for measure in ("parameters", "macs", "stored_bytes"):
        sizes = [getattr(t.effect(table), measure) for t in ordered]
        assert sizes == sorted(sizes, reverse=True)


def test_recurrent_layers_of_both_directions_keep_their_pairs():
    rows = [
        {"path": f"rnn.weight_{name}_l0{way}", "kind": "lstm", "outputs": 32, "inputs": inputs, "bias": 32}
        for way in ("", "_reverse")
        for name, inputs in (("ih", 5), ("hh", 8))
    ]
    rows.append({"path": "fc", "kind": "linear", "outputs": 3, "inputs": 16})
    table = LayerTable.of(assign(rows), replace(LSTM.info, hidden_size=8))
    half = HiddenUnits(ratio=0.5).effect(table)
    assert sides(half, "fc") == (3, 8)
    assert sides(half, "rnn.weight_hh_l0_reverse") == (16, 4)

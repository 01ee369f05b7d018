"""What a table adds up to, against loops; roles and blocks by path; what an exported file stores of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.deploy import deployed
from knowledge.layers import COLUMNS, LayerTable, ModelInfo, table_from_json, table_to_json
from knowledge.roles import assign, block_indices, completed, role_of

INFO = ModelInfo("m", "cnn", "image-classification")

ROLES = {
    "model.layers.3.self_attn.q_proj": "attention_q",
    "model.layers.3.self_attn.o_proj": "attention_o",
    "model.layers.3.mlp.gate_proj": "ffn_gate",
    "model.layers.3.mlp.up_proj": "ffn_up",
    "model.layers.3.mlp.down_proj": "ffn_down",
    "model.layers.3.mlp.gate": "router",
    "model.layers.3.block_sparse_moe.gate": "router",
    "model.layers.3.mlp.router.gate": "router",
    "model.layers.3.block_sparse_moe.experts.7.w1": "ffn_gate",
    "model.layers.3.block_sparse_moe.experts.7.w2": "ffn_down",
    "transformer.h.11.attn.c_attn": "attention_qkv",
    "transformer.h.11.attn.c_proj": "attention_o",
    "transformer.h.11.mlp.c_fc": "ffn_up",
    "transformer.h.11.mlp.c_proj": "ffn_down",
    "bert.encoder.layer.1.attention.self.query": "attention_q",
    "bert.encoder.layer.1.attention.self.key": "attention_k",
    "bert.encoder.layer.1.attention.self.value": "attention_v",
    "bert.encoder.layer.1.attention.output.dense": "attention_o",
    "bert.encoder.layer.1.intermediate.dense": "ffn_up",
    "bert.encoder.layer.1.output.dense": "ffn_down",
    "bert.pooler.dense": "body",
    "distilbert.transformer.layer.0.attention.out_lin": "attention_o",
    "distilbert.transformer.layer.0.ffn.lin2": "ffn_down",
    "vit.layers.0.attention.k_proj": "attention_k",
    "vit.layers.0.mlp.fc1": "ffn_up",
    "blocks.0.attention.v": "attention_v",
    "blocks.0.attention.o": "attention_o",
    "encoder.layers.0.self_attn.in_proj_weight": "attention_qkv",
    "encoder.layers.0.self_attn.out_proj": "attention_o",
    "gpt_neox.layers.2.attention.query_key_value": "attention_qkv",
    "gpt_neox.layers.2.mlp.dense_h_to_4h": "ffn_up",
    "gpt_neox.layers.2.mlp.dense_4h_to_h": "ffn_down",
    "model.gateway": "body",
    "model.query_encoder": "body",
}


@pytest.mark.parametrize(("path", "role"), ROLES.items())
def test_roles_of_dense_layers_by_whole_path_parts(path, role):
    assert role_of(path, "linear", 8, 16) == role


def test_roles_of_other_kinds():
    assert role_of("transformer.wte", "embedding") == "token_embedding"
    assert role_of("transformer.wpe", "embedding") == "position_embedding"
    assert role_of("vit.embeddings.position_embeddings", "other") == "position_embedding"
    assert role_of("vit.embeddings.cls_token", "other") == "body"
    assert role_of("lstm.weight_ih_l0", "lstm") == "input"
    assert role_of("lstm.weight_hh_l1_reverse", "lstm") == "hidden"
    assert role_of("model.layers.0.mlp.experts.gate_up_proj", "experts") == "ffn_up"
    assert role_of("blocks.0.ffn.0", "linear", 256, 64) == "ffn_up"
    assert role_of("blocks.0.ffn.2", "linear", 64, 256) == "ffn_down"


def test_blocks_are_numbers_of_whole_parts():
    paths = ["embed", "stem.0", "layer.1.fc", "layer.10.fc", "layer.10.experts.3.w1", "other.2.fc", "head"]
    assert block_indices(paths) == [-1, -1, 1, 10, 10, -1, -1]


def test_the_longest_list_holds_the_blocks():
    paths = [f"layer1.{b}.conv" for b in range(2)] + [f"layer3.{b}.conv" for b in range(6)] + ["features.0.0"]
    assert block_indices(paths) == [-1, -1, 0, 1, 2, 3, 4, 5, -1]


def row(path, kind, outputs, inputs=1, **more):
    return {"path": path, "kind": kind, "outputs": outputs, "inputs": inputs} | more


def test_stem_and_head_come_from_the_neighbors():
    rows = assign(
        [row("a", "conv", 8, 3), row("b", "conv", 8, 8), row("c", "linear", 16, 8), row("d", "linear", 10, 16)]
    )
    assert [r["role"] for r in rows] == ["stem", "body", "body", "head"]
    rows = assign(
        [row("patches", "linear", 64, 4), row("read", "linear", 10, 64), row("extra", "linear", 3, 64)], classes=10
    )
    assert [r["role"] for r in rows] == ["body", "head", "body"]


def test_widths_that_the_rows_tell():
    rows = [row("wte", "embedding", 100, 16)] + [row(f"h.{b}.mlp.c_proj", "linear", 16, 64) for b in range(3)]
    info = completed(LayerTable.of(assign(rows), ModelInfo("m", "transformer", "causal-lm"))).info
    assert (info.vocab_size, info.hidden_size, info.ffn_size, info.blocks) == (100, 16, 64, 3)


@st.composite
def tables(draw):
    number = st.integers(1, 12)
    rows = []
    for i in range(draw(st.integers(1, 6))):
        groups = draw(st.sampled_from([1, 1, 2]))
        rows.append(
            row(
                f"l{i}",
                "linear",
                draw(number),
                draw(number) * groups,
                groups=groups,
                kernel=draw(st.sampled_from([1, 9])),
                copies=draw(st.integers(1, 3)),
                bias=draw(st.integers(0, 9)),
                buffers=draw(st.integers(0, 9)),
                rank=draw(st.sampled_from([0, 0, 2])),
                bits=draw(st.sampled_from([4, 8, 16, 32])),
                group_size=draw(st.sampled_from([-1, 0, 4])),
                scale_bits=draw(st.sampled_from([0, 16, 32])),
                zero_bits=draw(st.sampled_from([0, 4, 8])),
                positions=float(draw(number)),
                tied_to=draw(st.sampled_from(["", "", "elsewhere"])),
            )
        )
    return LayerTable.of(rows, INFO)


@settings(max_examples=60, deadline=None)
@given(tables())
def test_totals_equal_a_loop_over_single_numbers(table):
    parameters, macs, bits = 0, 0.0, 0
    for r in table.rows():
        fan_in = r["inputs"] // r["groups"] * r["kernel"]
        numbers = r["copies"] * (r["rank"] * (r["outputs"] + fan_in) if r["rank"] else r["outputs"] * fan_in)
        scales = r["copies"] * (1 if r["group_size"] else r["outputs"] + r["rank"])
        owned = not r["tied_to"]
        parameters += numbers * owned + r["bias"]
        macs += numbers * r["positions"]
        matrices = [(r["rank"], fan_in), (r["outputs"], r["rank"])] if r["rank"] else [(r["outputs"], fan_in)]
        if owned and r["group_size"] > 0 and r["scale_bits"]:
            for rows, width in matrices * r["copies"]:
                groups = len(range(0, width, r["group_size"]))
                zeros = -(-groups * r["zero_bits"] // 8) * 8  # each row's in whole bytes
                bits += rows * (groups * (r["group_size"] * r["bits"] + r["scale_bits"]) + zeros)
        elif owned:
            bits += numbers * r["bits"] + (scales * (r["scale_bits"] + r["zero_bits"]) if r["scale_bits"] else 0)
        bits += (r["bias"] + r["buffers"]) * r["bias_bits"]
    assert (table.parameters, table.macs, table.stored_bytes) == (parameters, int(macs), -(-bits // 8))


@settings(max_examples=30, deadline=None)
@given(tables())
def test_json_gives_the_table_back(table):
    back = table_from_json(table_to_json(table))
    assert back.rows() == table.rows()
    assert all(back.columns[name].dtype == table.columns[name].dtype for name in COLUMNS)


FOLDING = LayerTable.of(
    [
        row("c1", "conv", 8, 3, kernel=9),
        row("b1", "norm", 8, bias=8, buffers=16, folds_into="c1"),
        row("pre", "norm", 8, bias=8, buffers=16),
        row("c2", "conv", 8, 8, kernel=9, bias=8),
        row("b2", "norm", 8, bias=8, buffers=16, folds_into="c2"),
        row("lstm.weight_ih_l0", "lstm", 32, 8),
        row("pooler", "linear", 8, 8, exported=False),
    ],
    INFO,
)


def test_folded_norms_leave_a_bias_and_unread_layers_leave_nothing():
    file = deployed(FOLDING)
    assert file.path.tolist() == ["c1", "pre", "c2", "lstm.weight_ih_l0"]
    assert file.bias.tolist() == [8, 8, 8, 32]
    assert file.stored_bytes == 4 * (8 * 27 + 8 + 4 * 8 + 8 * 72 + 8 + 32 * 8 + 32)
    assert deployed(file).rows() == file.rows()


def test_a_norm_stays_whose_convolution_is_gone():
    without = FOLDING.keep(FOLDING.path != "c1")
    assert "b1" in deployed(without).path


def test_changes_leave_the_original_alone():
    before = FOLDING.rows()
    FOLDING.change(np.arange(2), outputs=[1, 2], path=["x", "y"])
    assert FOLDING.rows() == before
    with pytest.raises(AttributeError):
        _ = FOLDING.colour
    with pytest.raises(KeyError):
        FOLDING.index("nowhere")

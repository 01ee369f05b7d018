"""Students: the target is met on the exact count, shapes are possible, and the table is what the shape says."""

import time

import numpy as np
import pytest

from knowledge.dimensions import FFN, FIXED, HEAD_DIM, HIDDEN, INNER, KV, QKV, parameter_counts
from knowledge.layers import LayerTable, ModelInfo
from knowledge.roles import assign
from knowledge.students import head_dim_of, largest_compression, resize, solve_student, stages_for
from knowledge.typical import build, typical, typical_models
from knowledge.values import InputError, StudentShape, Workload

TRANSFORMERS = [m for m in typical_models() if m.info["family"] in ("transformer", "moe")]
OTHERS = [m for m in typical_models() if m.info["family"] in ("cnn", "rnn")]


def ids(models):
    return [m.id for m in models]


@pytest.mark.parametrize("model", typical_models(), ids=ids(typical_models()))
def test_typical_models_have_the_published_number_of_parameters(model):
    table = build(model)
    assert table.parameters == model.parameters
    assert table.info.typical
    assert len(set(table.path)) == len(table)
    assert (table.role == "head").sum() == (0 if table.info.task == "embedding" else 1)


def test_published_multiply_accumulates_of_resnet_50():
    table = typical("cnn")
    assert table.keep(table.kind != "norm").macs == 4_089_184_256  # 4.09 G


@pytest.mark.parametrize("compression", [1.5, 2.0, 3.0, 4.0, 10.0])
@pytest.mark.parametrize("model", [m for m in TRANSFORMERS if m.info["task"] != "embedding"], ids=lambda m: m.id)
def test_students_meet_the_target_and_are_possible(model, compression):
    table = build(model)
    shape = solve_student(table, compression)
    student = resize(table, shape)
    assert student.parameters == pytest.approx(table.parameters / compression, rel=0.02)
    assert shape.hidden_size % shape.heads == 0
    assert shape.heads % shape.kv_heads == 0
    assert shape.kv_heads <= table.info.kv_heads
    assert head_dim_of(table.info, shape) % 2 == 0
    assert shape.ffn_size % 8 == 0
    assert shape.blocks <= table.info.blocks
    assert shape.hidden_size <= table.info.hidden_size
    assert shape.ffn_size <= table.info.ffn_size
    assert sorted(set(student.block[student.block >= 0])) == list(range(shape.blocks))


def test_students_shrink_evenly():
    table = typical("transformer", "causal-lm")
    shape = solve_student(table, 4)
    shares = [shape.blocks / 22, shape.hidden_size / 2048, shape.ffn_size / 5632]
    assert max(shares) / min(shares) < 1.25


def test_solving_is_quick():
    table = typical("transformer", "causal-lm", 7 * 10**9)
    solve_student(table, 2)
    started = time.perf_counter()
    solve_student(table, 3)
    assert time.perf_counter() - started < 0.25  # some 20 ms on an idle machine


def test_the_many_shape_count_equals_the_table_of_each():
    table = typical("moe")
    rng = np.random.default_rng(0)
    shapes = []
    for _ in range(12):
        kv, groups, dim = (int(rng.integers(1, n)) for n in (4, 4, 33))
        heads, ffn, blocks = kv * groups, int(rng.integers(1, 99)), int(rng.integers(1, 12))
        sizes = {"blocks": blocks, "hidden_size": heads * 2 * dim, "ffn_size": ffn, "heads": heads, "kv_heads": kv}
        shapes.append(StudentShape(**sizes))
    heads, kv = (np.array([getattr(s, n) for s in shapes]) for n in ("heads", "kv_heads"))
    hidden = np.array([s.hidden_size for s in shapes])
    dim = hidden // heads
    widths = {FIXED: np.ones(12, int), HIDDEN: hidden, INNER: heads * dim, KV: kv * dim, QKV: (heads + 2 * kv) * dim}
    widths |= {FFN: np.array([s.ffn_size for s in shapes]), HEAD_DIM: dim}
    counted = parameter_counts(table, np.array([s.blocks for s in shapes]), widths)
    assert counted.tolist() == [resize(table, s).parameters for s in shapes]


def test_the_same_shape_gives_the_same_table():
    for model in TRANSFORMERS:
        table = build(model)
        info = table.info
        same = resize(table, StudentShape(blocks=info.blocks, hidden_size=info.hidden_size, heads=info.heads))
        assert same.rows() == table.rows()
        assert same.info == info


def test_students_of_a_model_without_feed_forward_layers_meet_the_target():
    layers = typical("transformer", "causal-lm", params=30_000_000)
    bare = layers.keep(~np.isin(layers.role, ("ffn_up", "ffn_gate", "ffn_down"))).with_info(ffn_size=0)
    for compression in (1.5, 3.0):
        student = resize(bare, solve_student(bare, compression))
        assert bare.parameters / student.parameters == pytest.approx(compression, rel=0.05)


def test_embedding_models_keep_their_vectors_width():
    table = typical("transformer", "embedding")
    shape = solve_student(table, 2)
    assert (shape.hidden_size, shape.heads) == (768, 12)
    limit = largest_compression(table)
    assert 3 < limit < 5  # a quarter of the parameters are embeddings
    with pytest.raises(InputError, match=r"distill\.compression: 6: .* at most") as caught:
        solve_student(table, 6)
    assert f"{limit:.2f}" in str(caught.value)
    assert resize(table, solve_student(table, limit * 0.999)).parameters >= table.parameters / limit


@pytest.mark.parametrize("compression", [1.5, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("model", OTHERS, ids=lambda m: m.id)
def test_widths_shrink_by_one_share(model, compression):
    table = build(model)
    shape = solve_student(table, compression)
    student = resize(table, shape)
    assert student.parameters == pytest.approx(table.parameters / compression, rel=0.03)
    head = table.index("fc")
    assert student.outputs[head] == table.outputs[head]
    assert student.inputs[0] == table.inputs[0]
    inner = (student.kind == "conv") | (student.kind == "lstm")
    assert (student.outputs[inner] % 4 == 0).all()


def test_recurrent_students_of_both_directions():
    rows = []
    for layer, inputs in ((0, 8), (1, 24)):
        for way in ("", "_reverse"):
            shape = {"kind": "lstm", "outputs": 48, "bias": 48, "positions": 5.0}
            rows += [{**shape, "path": f"rnn.weight_ih_l{layer}{way}", "inputs": inputs}]
            rows += [{**shape, "path": f"rnn.weight_hh_l{layer}{way}", "inputs": 12}]
    rows.append({"path": "fc", "kind": "linear", "outputs": 4, "inputs": 24, "bias": 4})
    table = LayerTable.of(assign(rows), ModelInfo("m", "rnn", "sequence-classification", hidden_size=12))
    half = resize(table, StudentShape(width=0.67))
    assert half.inputs.tolist() == [8, 8, 8, 8, 16, 8, 16, 8, 16]
    assert set(half.outputs.tolist()) == {32, 4}
    assert half.bias.tolist() == [32] * 8 + [4]
    assert half.info.hidden_size == 8


@pytest.mark.parametrize(
    ("compression", "family", "stages"),
    [(2, "transformer", 1), (4, "transformer", 1), (6, "transformer", 2), (15, "transformer", 2),
     (17, "transformer", 3), (5, "cnn", 1), (3.5, "rnn", 2)],
)  # fmt: skip
def test_stages_follow_one_rule(compression, family, stages):
    found = stages_for(compression, family)
    assert len(found) == stages
    assert np.prod(found) == pytest.approx(compression)


def test_a_shape_that_no_model_can_have_is_refused():
    table = typical("transformer")
    with pytest.raises(ValueError, match="no shape"):
        resize(table, StudentShape(hidden_size=100, heads=12))


# -- typical models --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "task", "params"),
    [("transformer", None, 7e9), ("transformer", "causal-lm", 7e9), ("transformer", "causal-lm", 2e8),
     ("moe", None, 5e7), ("transformer", "image-classification", 6e8), ("cnn", None, 1e8), ("rnn", None, 5e7)],
)  # fmt: skip
def test_typical_models_scale_to_the_parameters_asked_for(arch, task, params):
    table = typical(arch, task, int(params))
    assert table.parameters == pytest.approx(params, rel=0.05)
    assert f"{table.parameters:,}" in table.info.name
    assert table.info.hidden_size == 0 or table.info.heads == 0 or table.info.hidden_size % table.info.heads == 0


def test_typical_models_take_the_workloads_shape():
    assert typical("transformer", workload=Workload(seq_len=64)).info.seq_len == 64
    assert typical("transformer", workload=Workload(seq_len=4096)).info.seq_len == 512
    small, large = (typical("cnn", workload=Workload(image_size=(3, n, n))) for n in (112, 224))
    assert 3.7 < large.macs / small.macs < 4.2
    assert large.parameters == small.parameters


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("transformers",), "arch: transformers: unknown architecture; did you mean transformer?"),
        (("cnn", "causal-lm"), "task: causal-lm: there is no typical cnn model"),
        (("transformer", None, 1000), "params: 1,000: no bert-base has so few"),
        (("cnn", None, 100), "params: 100: no resnet-50 has so few"),
    ],
)
def test_typical_models_that_do_not_exist(arguments, problem):
    with pytest.raises(InputError) as caught:
        typical(*arguments)
    assert problem in str(caught.value)

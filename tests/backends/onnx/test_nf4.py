"""NF4 weights in whole models: the numbers of the file, what it takes, and what is left alone by name."""

from collections import Counter

import numpy as np
import onnx
import pytest
from grouped import rounded

from backends.models import predictor
from backends.onnx import graph as graphs
from backends.onnx import nf4, weight_only
from backends.onnx.session import open_session, session_predictor
from backends.onnx.weights import weight_bytes
from backends.profile import profile
from backends.profile_onnx import profile_onnx
from backends.runner import refuse
from knowledge.techniques.groups import Nf4, WeightOnly
from knowledge.values import InputError, Workload

WORKLOAD = Workload(seq_len=12, threads=1)


def difference(got, expected):
    """Largest difference, in units of the largest expected output."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def operators(path):
    return Counter(node.op_type for node in graphs.load(path).graph)


@pytest.mark.parametrize(
    ("kind", "technique"),
    [
        ("llama", Nf4(accuracy_level=0)),
        ("gpt2", Nf4(group_size=32, embedding_bits=4, accuracy_level=0)),
        ("bert", Nf4(group_size=16, embedding_bits=32)),
    ],
)
def test_the_file_computes_with_the_rounded_weights_and_is_what_the_decision_says(
    kind, technique, exported, outputs, tmp_path
):
    found, out = exported(kind), tmp_path / "out.onnx"
    layers = found.context.layers
    decision = nf4.apply(technique, found.path, out, found.context)
    onnx.checker.check_model(onnx.load(out))
    expected = predictor(rounded(found.model, technique, layers, decision))(dict(found.split.inputs))
    assert difference(outputs(out, found.split), expected) < 1e-4
    after, table = technique.effect(layers, decision), profile_onnx(out, WORKLOAD)
    assert after.rows() == technique.effect(layers).rows()
    saved = weight_bytes(found.path) - weight_bytes(out)
    assert saved == pytest.approx(layers.stored_bytes - after.stored_bytes, abs=32)  # a shape
    assert table.stored_bytes == pytest.approx(weight_bytes(out), abs=1)
    assert (table.macs, after.parameters) == (layers.macs, layers.parameters)
    assert not decision.skipped
    body = int(technique.body(layers).sum())
    assert operators(out)["MatMulBnb4"] == body
    for path in decision.formats:
        if technique.body(layers)[layers.index(path)]:
            row = table.rows()[table.index(path)]
            assert (row["bits"], row["group_size"], row["scale_bits"], row["zero_bits"]) == (
                4, technique.group_size, 32, 0,
            )  # fmt: skip


def test_ends_are_integers_and_a_tied_head_is_stored_once(exported, tmp_path):
    found, out = exported("gpt2"), tmp_path / "out.onnx"
    nf4.apply(Nf4(group_size=32), found.path, out, found.context)
    stored = {name: v.const_value.nbytes for name, v in graphs.load(out).graph.initializers.items() if "wte" in name}
    assert stored == {"transformer.wte.weight": 512 * 64, "transformer.wte.weight_scale": 512 * 2 * 4}
    assert operators(out)["MatMulNBits"] == 1
    assert operators(out)["GatherBlockQuantized"] == 2


def test_nf4_is_nearer_to_the_original_than_even_values_without_zero_points(exported, outputs, tmp_path):
    found = exported("llama")
    original = outputs(found.path, found.split)
    off = {}
    shared = {"group_size": 64, "embedding_bits": 32, "accuracy_level": 0}
    for module, technique in ((nf4, Nf4(**shared)), (weight_only, WeightOnly(symmetric=True, **shared))):
        module.apply(technique, found.path, tmp_path / "out.onnx", found.context)
        off[technique.id] = float(np.square(outputs(tmp_path / "out.onnx", found.split) - original).mean())
    assert 0 < off["nf4"] < off["weight_only"]


def test_rows_that_do_not_divide_into_groups_stay_by_name(exported, tmp_path):
    found, out = exported("gpt2", ffn=160), tmp_path / "out.onnx"
    decision = nf4.apply(Nf4(group_size=64), found.path, out, found.context)
    assert {r.observed for r in decision.skipped} == {f"transformer.h.{i}.mlp.c_proj is 160 wide" for i in range(2)}
    assert {r.required for r in decision.skipped} == {"dense layers whose width is a multiple of 64"}
    assert operators(out)["MatMulBnb4"] == 2 * 3


def test_groups_that_fit_no_layer_are_refused_before(small):
    layers = profile(small.transformer("gpt2", hidden=64), WORKLOAD)
    with pytest.raises(InputError, match=r"nf4: .*layers at most 64 wide.*set nf4.group_size to 64"):
        refuse(Nf4(group_size=128), layers)


@pytest.mark.parametrize("name", ["stdlib-lm", "stdlib-gpt2", "minilm"])
def test_trained_models_compute_with_the_rounded_weights(name, zoo, tmp_path):
    found, out, technique = zoo(name), tmp_path / "out.onnx", Nf4(accuracy_level=0)
    layers = found.context.layers
    decision = nf4.apply(technique, found.path, out, found.context)
    expected = predictor(rounded(found.model, technique, layers, decision))(found.batch)
    assert difference(session_predictor(open_session(out, 1))(found.batch), expected) < 1e-4
    assert not decision.skipped
    assert technique.effect(layers, decision).stored_bytes == pytest.approx(weight_bytes(out), rel=0.01)

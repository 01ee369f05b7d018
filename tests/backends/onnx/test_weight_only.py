"""Weights of a few bits in whole models: the numbers of the file, what it takes, and what is left alone by name."""

import dataclasses
from collections import Counter

import numpy as np
import onnx
import pytest
from grouped import rounded

from backends.factorize import svd
from backends.models import predictor
from backends.onnx import graph as graphs
from backends.onnx import weight_only
from backends.onnx.export import export
from backends.onnx.session import open_session, session_predictor
from backends.onnx.weights import weight_bytes
from backends.profile import profile
from backends.profile_onnx import profile_onnx
from backends.runner import refuse
from knowledge.deploy import deployed
from knowledge.techniques.factorize import Svd
from knowledge.techniques.groups import WeightOnly
from knowledge.values import InputError, RunFailed, Workload

WORKLOAD = Workload(seq_len=12, threads=1)
SETTINGS = {
    "llama": WeightOnly(group_size=32, accuracy_level=0),
    "gpt2": WeightOnly(group_size=64, bits=3, embedding_bits=4, accuracy_level=0),
    "bert": WeightOnly(group_size=16, bits=2, symmetric=True, accuracy_level=0),
    "mixtral": WeightOnly(group_size=64, bits=8, embedding_bits=32, accuracy_level=0),
}


def difference(got, expected):
    """Largest difference, in units of the largest expected output."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def sizes(path):
    """Bytes of every stored tensor by name."""
    return {name: v.const_value.nbytes for name, v in graphs.load(path).graph.initializers.items()}


def operators(path):
    return Counter(node.op_type for node in graphs.load(path).graph)


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_file_computes_with_the_rounded_weights_and_is_what_the_decision_says(kind, exported, outputs, tmp_path):
    found, technique, out = exported(kind), SETTINGS[kind], tmp_path / "out.onnx"
    layers = found.context.layers
    decision = weight_only.apply(technique, found.path, out, found.context)
    onnx.checker.check_model(onnx.load(out))
    expected = predictor(rounded(found.model, technique, layers, decision))(dict(found.split.inputs))
    assert difference(outputs(out, found.split), expected) < 1e-4
    after, before, table = (
        technique.effect(layers, decision),
        profile_onnx(found.path, WORKLOAD),
        profile_onnx(out, WORKLOAD),
    )
    saved = weight_bytes(found.path) - weight_bytes(out)
    assert saved == pytest.approx(layers.stored_bytes - after.stored_bytes, abs=32)  # a shape
    assert table.stored_bytes == pytest.approx(weight_bytes(out), abs=1)
    assert table.macs == after.macs == layers.macs
    small = 3 * (kind == "gpt2")  # numbers: the shape in which a tied head reads its bytes
    assert table.parameters - before.parameters == after.parameters - layers.parameters + small == small
    for row in after.rows():
        if row["path"] in decision.formats and not row["tied_to"]:
            read = table.rows()[table.index(row["path"])]
            assert {n: read[n] for n in ("bits", "group_size", "scale_bits", "zero_bits")} == {
                n: row[n] for n in ("bits", "group_size", "scale_bits", "zero_bits")
            }
    if kind != "mixtral":  # whose routers and experts stay
        assert not decision.skipped
        assert technique.effect(layers).rows() == after.rows()


def test_faster_activations_stay_near_the_rounded_model(exported, outputs, tmp_path):
    found = exported("llama")
    results = {}
    for level in (0, 4):
        out = tmp_path / f"{level}.onnx"
        weight_only.apply(WeightOnly(group_size=32, accuracy_level=level), found.path, out, found.context)
        results[level] = outputs(out, found.split)
        levels = {n.attributes["accuracy_level"].value for n in graphs.load(out).graph if n.op_type == "MatMulNBits"}
        assert levels == {level}
    assert 1e-5 < difference(results[4], results[0]) < 0.1


def test_a_tied_head_is_stored_once(exported, tmp_path):
    found, out = exported("gpt2"), tmp_path / "out.onnx"
    technique = WeightOnly(group_size=32)
    decision = weight_only.apply(technique, found.path, out, found.context)
    table = {name: size for name, size in sizes(out).items() if "wte" in name}
    assert table == {
        "transformer.wte.weight": 512 * 64,
        "transformer.wte.weight_scale": 512 * 2 * 4,
        "transformer.wte.weight_zero": 512 * 2,
    }
    assert decision.formats["lm_head"] == decision.formats["transformer.wte"]
    assert operators(out)["GatherBlockQuantized"] == 2  # tokens, positions
    assert operators(out)["MatMulNBits"] == 2 * 4 + 1
    assert operators(out)["Gather"] == operators(found.path)["Gather"] - 2


def test_ends_that_are_asked_to_stay_do_and_are_no_refusal(exported, tmp_path):
    found, out = exported("gpt2"), tmp_path / "out.onnx"
    decision = weight_only.apply(WeightOnly(group_size=32, embedding_bits=32), found.path, out, found.context)
    assert not {"transformer.wte", "transformer.wpe", "lm_head"} & set(decision.formats)
    assert decision.skipped == ()
    assert sizes(out)["transformer.wte.weight"] == 512 * 64 * 4


def test_experts_and_routers_stay_by_name(exported, tmp_path):
    found, out = exported("mixtral"), tmp_path / "out.onnx"
    decision = weight_only.apply(WeightOnly(group_size=64), found.path, out, found.context)
    why = {refusal.observed: refusal.rule for refusal in decision.skipped}
    blocks = [f"model.layers.{i}.mlp" for i in range(2)]
    widths = {"gate_up_proj": 64, "down_proj": 256}
    experts = {f"{b}.experts.{part} is a stack of 4 experts, {n} wide" for b in blocks for part, n in widths.items()}
    assert why == dict.fromkeys(experts, "groups-stacked-experts") | {
        f"{b}.gate is a router": "groups-router" for b in blocks
    }


def test_layers_that_are_too_narrow_stay_by_name(exported, tmp_path):
    found, out = exported("gpt2"), tmp_path / "out.onnx"
    decision = weight_only.apply(WeightOnly(group_size=128), found.path, out, found.context)
    narrow = {
        f"transformer.h.{i}.{part} is 64 wide" for i in range(2) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")
    }
    assert {r.observed for r in decision.skipped} == narrow
    assert {r.required for r in decision.skipped} == {"dense layers at least 128 wide"}
    assert set(decision.formats) == {
        "transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj", "transformer.wte", "transformer.wpe", "lm_head",
    }  # fmt: skip


def test_groups_that_fit_no_layer_are_refused_before(small):
    layers = profile(small.transformer("gpt2", hidden=64), WORKLOAD)
    with pytest.raises(InputError, match=r"weight_only: .*layers at most 64 wide.*set weight_only.group_size to 64"):
        refuse(WeightOnly(group_size=128), layers)


def test_both_factors_of_a_layer(exported, small, tmp_path):
    found = exported("llama")
    model, _ = svd.apply(Svd(ratio=0.5, min_width=32), found.model.clone(), found.context)
    path, out, layers = tmp_path / "m.onnx", tmp_path / "out.onnx", deployed(profile(model, WORKLOAD))
    assert (layers.rank > 0).any()
    export(model, path, WORKLOAD)
    technique = WeightOnly(group_size=16, accuracy_level=0)
    decision = weight_only.apply(technique, path, out, dataclasses.replace(found.context, layers=layers))
    assert weight_bytes(out) == pytest.approx(technique.effect(layers, decision).stored_bytes, rel=0.01)
    thin = {name: size for name, size in sizes(out).items() if ".down.weight" in name or ".up.weight" in name}
    wide, narrow = int((layers.rank >= 16).sum()), int(((layers.rank > 0) & (layers.rank < 16)).sum())
    assert len(thin) == 2 * (3 * wide + narrow)  # codes, scales, zero points of both factors; or a float matrix each
    assert {r.rule for r in decision.skipped} == {"groups-too-wide"}
    assert len(decision.skipped) == narrow
    before, after = (session_predictor(open_session(p, 1))(dict(found.split.inputs)) for p in (path, out))
    assert difference(after, before) < 0.5


def test_weights_that_are_not_finite_are_named(exported, tmp_path):
    found = exported("bert")
    model = graphs.load(found.path)
    value = next(v for n, v in model.graph.initializers.items() if n.endswith("layer.0.intermediate.dense.weight"))
    array = graphs.stored(value).copy()
    array[3, 3] = np.nan
    value.const_value = graphs.ir.tensor(array, name=value.name)
    graphs.save(model, tmp_path / "broken.onnx")
    with pytest.raises(RunFailed, match=r"weight_only: encoder\.layer\.0\.intermediate\.dense\.weight holds numbers"):
        weight_only.apply(WeightOnly(group_size=32), tmp_path / "broken.onnx", tmp_path / "out.onnx", found.context)
    assert not (tmp_path / "out.onnx").exists()


def test_the_same_file_gives_the_same_bytes(exported, tmp_path):
    found = exported("gpt2")
    for name in ("one", "two"):
        weight_only.apply(WeightOnly(group_size=32), found.path, tmp_path / name, found.context)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


# -- trained models --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "technique"),
    [
        ("stdlib-lm", WeightOnly(group_size=32, embedding_bits=4, accuracy_level=0)),
        ("stdlib-gpt2", WeightOnly(group_size=64, bits=3, symmetric=True, accuracy_level=0)),
        ("minilm", WeightOnly(group_size=128, bits=4, accuracy_level=0)),
    ],
)
def test_trained_models_compute_with_the_rounded_weights(name, technique, zoo, tmp_path):
    found, out = zoo(name), tmp_path / "out.onnx"
    layers = found.context.layers
    decision = weight_only.apply(technique, found.path, out, found.context)
    expected = predictor(rounded(found.model, technique, layers, decision))(found.batch)
    assert difference(session_predictor(open_session(out, 1))(found.batch), expected) < 1e-4
    assert not decision.skipped
    assert technique.effect(layers, decision).stored_bytes == pytest.approx(weight_bytes(out), rel=0.01)

"""Layers that stay in float: each one's harm is what its own rounding does, and the worst for their size are kept."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from backends.onnx import graph as graphs
from backends.onnx import int8_dynamic, int8_static, sensitive
from backends.onnx.dense import dense_layers
from backends.onnx.ranges import calibrated_grids
from backends.onnx.weights import weight_bytes
from knowledge.techniques.quantize import Int8Dynamic, Int8Static

FORMS = [(int8_dynamic, Int8Dynamic), (int8_static, Int8Static)]
IDS = ["dynamic", "static"]
WORST = "encoder.layer.1.output.dense"


def error(got, exact):
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


def integer_weights(path):
    """Layers whose weight is stored as int8."""
    kept = onnx.load(path).graph.initializer
    return {i.name.removesuffix(".weight") for i in kept if i.data_type == onnx.TensorProto.INT8 and len(i.dims) > 1}


@pytest.fixture
def uneven(exported, tmp_path):
    """An encoder of which one neuron writes outliers: the layer that reads them loses far more than the others."""
    found, path = exported("bert"), tmp_path / "uneven.onnx"
    model = graphs.load(found.path)
    layers = {layer.name: layer for layer in dense_layers(model.graph)}
    for name, factor in (("intermediate", 100), ("output", 0.01)):
        layer = layers[f"{WORST.rpartition('.output')[0]}.{name}.dense.weight"]
        weight = layer.weight.copy()  # [inputs, outputs]
        weight[(slice(None), 0) if name == "intermediate" else (0, slice(None))] *= factor
        layer.stored.const_value = ir.tensor(
            np.ascontiguousarray(weight.T if layer.turned else weight), name=layer.name
        )
    graphs.save(model, path)
    return path, found.context


@pytest.mark.parametrize(("module", "cls"), FORMS, ids=IDS)
@pytest.mark.parametrize("kind", ["bert", "cnn"])
def test_a_layer_does_the_harm_that_a_file_with_it_alone_in_8_bits_shows(
    module, cls, kind, exported, outputs, tmp_path, monkeypatch
):
    found, static = exported(kind), cls is Int8Static
    batches = [dict(found.split.inputs)]  # in one batch: dynamic ranges are those of a batch
    model = graphs.load(found.path)
    layers = sensitive.candidates(model.graph, convolutions=static)
    values = list(dict.fromkeys(n.inputs[0] for one in layers for n in one.nodes))
    grids = calibrated_grids(model, values, batches, "minmax", 1) if static else {}
    sensitive.add_switches(model.graph, layers, grids)
    harm = sensitive.harms(model, len(layers), batches, 1)
    names = [layer.name for layer in layers]
    exact = outputs(found.path, found.split)
    for number in (0, len(names) // 2, len(names) - 1):
        others = frozenset(names) - {names[number]}
        monkeypatch.setattr(module, "float_layers", lambda *_, others=others: (others, []))
        out = tmp_path / "out.onnx"
        module.apply(cls(embeddings=False), found.path, out, found.context)
        assert integer_weights(out) == {names[number].removesuffix(".weight")}
        real = error(outputs(out, found.split), exact)
        if layers[number].nodes[0].op_type == "Conv":  # its file rounds what it gives, too
            assert 0.2 * real < harm[number] < real
        else:
            assert real == pytest.approx(harm[number], rel=0.05)


@pytest.mark.parametrize(("module", "cls"), FORMS, ids=IDS)
@pytest.mark.parametrize("smooth", [0.0, 0.5])
def test_the_layer_that_8_bits_hurt_most_stays_in_float_and_is_named(module, cls, smooth, uneven, outputs, tmp_path):
    path, context = uneven
    split, errors = context.data.calibration, []
    exact = outputs(path, split)
    for share in (0.0, 0.3):
        out = tmp_path / f"{share}.onnx"
        technique = cls(embeddings=False, float_share=share, smooth=smooth)
        decision = module.apply(technique, path, out, context)
        errors.append(error(outputs(out, split), exact))
        stored = technique.effect(context.layers, decision).stored_bytes
        assert stored == pytest.approx(weight_bytes(out), rel=0.01, abs=100)
    reasons = [r for r in decision.skipped if r.rule == "int8-sensitive-layer"]
    named = {r.observed.partition(".weight")[0] for r in reasons}
    assert named
    assert not named & (set(decision.formats) | integer_weights(out))
    layers = {layer.name.removesuffix(".weight"): layer.weight.size for layer in dense_layers(graphs.load(path).graph)}
    assert sum(layers[n] for n in named) <= 0.3 * sum(layers.values())
    assert set(layers) == named | integer_weights(out)
    assert all("% of what all layers do" in r.observed and "float_share" in r.required for r in reasons)
    assert errors[1] < (0.9 if smooth else 0.5) * errors[0]
    assert smooth or WORST in named  # smoothing has taken the outliers away


def test_the_choice_is_the_best_of_all_that_fit():
    rng = np.random.default_rng(0)
    for _ in range(5):
        harm, weights = rng.random(8) ** 3, rng.integers(1, 50, 8)
        kept = sensitive.chosen(harm, weights, 0.35)
        subsets = [np.array(bits, bool) for bits in itertools.product((0, 1), repeat=8)]
        best = max((harm[s] ** 2).sum() for s in subsets if weights[s].sum() <= 0.35 * weights.sum())
        assert weights[kept].sum() <= 0.35 * weights.sum()
        assert (harm[kept] ** 2).sum() == pytest.approx(best)


def test_a_head_tied_to_its_embedding_follows_it(exported, tmp_path):
    found = exported("gpt2")
    out = tmp_path / "out.onnx"
    decision = int8_dynamic.apply(Int8Dynamic(float_share=0.9), found.path, out, found.context)
    assert {"transformer.wte", "lm_head"} <= set(decision.formats)
    assert 0 < len(integer_weights(out)) < len(dense_layers(graphs.load(found.path).graph))


def test_a_share_too_small_for_any_layer_is_told(exported, tmp_path):
    found = exported("bert")
    out, plain = tmp_path / "out.onnx", tmp_path / "plain.onnx"
    decision = int8_dynamic.apply(Int8Dynamic(float_share=0.01), found.path, out, found.context)
    assert [r.rule for r in decision.skipped if r.rule.startswith("int8-no-layer")] == ["int8-no-layer-fits-the-share"]
    assert "the smallest layer has 4.2 % of the weights" in decision.skipped[-1].observed
    int8_dynamic.apply(Int8Dynamic(), found.path, plain, found.context)
    assert out.read_bytes() == plain.read_bytes()

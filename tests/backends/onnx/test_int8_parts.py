"""The tensor arithmetic of the 8-bit forms against slow references."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.onnx.dense import dense_layers, symmetric
from backends.onnx.embeddings import embeddings, quantize_embedding
from backends.onnx.formats import owners
from backends.onnx.observe import extremes, observe, per_channel
from backends.onnx.ranges import calibrated_grids, grid
from backends.onnx.smooth import factors, noise


def test_symmetric_scales_each_index_by_its_largest_number():
    w = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    w[:, 3] = 0
    q, scale = symmetric(w, axis=1)
    for j in range(7):
        largest = max(abs(float(v)) for v in w[:, j])
        assert scale[j] == pytest.approx(largest / 127 if largest else 1.0)
        for i in range(5):
            assert abs(float(q[i, j]) * scale[j] - w[i, j]) <= scale[j] / 2 + 1e-7
    assert np.abs(q).max() == 127


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_grids_cover_the_range_and_hold_zero(low, high):
    found = grid(low, high)
    codes = np.arange(256)
    values = (codes - float(found.zero)) * float(found.scale)
    assert 0.0 in values
    step = float(found.scale)
    assert values[0] - step <= min(low, 0) <= high <= values[-1] + step


def test_factors_balance_activations_and_weights():
    x, w = np.array([16.0, 1.0, 0.0]), np.array([1.0, 4.0, 2.0])
    s = factors(x, w, 0.5)
    np.testing.assert_allclose(x[:2] / s[:2], w[:2] * s[:2], rtol=1e-5)  # strength 0.5: equal ranges
    assert s[2] == 1  # a channel that is never on
    np.testing.assert_allclose(factors(x, np.ones(3), 0.0), 1)


def test_expected_noise_ranks_scalings_as_rounding_does():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((500, 32)), rng.standard_normal((32, 16))
    x[:, 0] *= 40
    channels = per_channel(None, None, x.astype(np.float32))

    def rounded(s):
        step = np.abs(x / s).max() / 127.5
        q, scale = symmetric((w * s[:, None]).astype(np.float32), axis=1)
        return np.square(np.rint(x / s / step) * step @ (q * scale) - x @ w).mean()

    scalings = [
        np.ones(32),
        factors(channels.largest, np.abs(w).max(1), 0.5),
        factors(channels.largest, np.ones(32), 1.0),
    ]
    expected, real = ([f(s) for s in scalings] for f in (lambda s: noise(w, channels, s), rounded))
    assert np.argsort(expected).tolist() == np.argsort(real).tolist()
    assert real[1] < 0.2 * real[0]


def one_layer(kind="Gemm", **attributes):
    """ids -> Gather -> Relu -> dense layer."""
    rng = np.random.default_rng(0)
    table = numpy_helper.from_array(rng.standard_normal((300, 16)).astype(np.float32), "embed.weight")
    weight = numpy_helper.from_array(rng.standard_normal((16, 16)).astype(np.float32), "fc.weight")
    nodes = [
        helper.make_node("Gather", ["embed.weight", "ids"], ["e"]),
        helper.make_node("Relu", ["e"], ["h"]),
        helper.make_node(kind, ["h", "fc.weight"], ["y"], **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])],
        [table, weight],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.serde.deserialize_model(proto)


def value(model, name):
    return next(v for node in model.graph for v in node.outputs if v.name == name)


BATCHES = [{"ids": np.arange(i, i + 50)} for i in range(0, 300, 50)]


def table_of(model):
    return model.graph.initializers["embed.weight"].const_value.numpy()


def test_observed_statistics_are_those_of_the_activations():
    model = one_layer()
    h = value(model, "h")
    expected = np.maximum(table_of(model), 0)
    channels = observe(model, [h], BATCHES, per_channel)[h]
    np.testing.assert_allclose(channels.largest, expected.max(0))
    np.testing.assert_allclose(channels.mean_square, (expected.astype(np.float64) ** 2).mean(0))
    assert observe(model, [h], BATCHES, extremes)[h] == (0.0, pytest.approx(expected.max()))
    assert len(model.graph.outputs) == 1  # left as it was


def test_inputs_of_the_graph_can_be_observed():
    model = one_layer()
    ids = model.graph.inputs[0]
    assert observe(model, [ids], BATCHES, extremes)[ids] == (0.0, 299.0)


def test_percentiles_clip_what_extremes_do_not():
    model = one_layer()
    table = table_of(model).copy()
    table[7, 7] = 1000.0
    model.graph.initializers["embed.weight"].const_value = ir.tensor(table, name="embed.weight")
    e = value(model, "e")
    batches = [{"ids": np.tile(np.arange(300), 10)}]  # the outlier is 1 in 4800 numbers: kept
    rare = [{"ids": np.concatenate([np.arange(300), np.tile(np.arange(8, 300), 30)])}]  # 1 in 141,000: clipped
    kept, clipped, covered = (
        calibrated_grids(model, [e], data, method, 1)[e].scale
        for data, method in ((batches, "percentile"), (rare, "percentile"), (rare, "minmax"))
    )
    assert covered == pytest.approx(1000 / 255, rel=0.02)
    assert kept == pytest.approx(covered, rel=0.02)
    assert clipped < 0.05 * covered


@pytest.mark.parametrize(
    ("kind", "attributes", "found"),
    [
        ("MatMul", {}, 1),
        ("Gemm", {"transB": 1}, 1),
        ("Gemm", {"alpha": 0.5}, 0),
        ("Gemm", {"transA": 1}, 0),
    ],
)
def test_only_plain_products_count_as_dense(kind, attributes, found):
    layers = dense_layers(one_layer(kind, **attributes).graph)
    assert len(layers) == found
    for layer in layers:
        array = layer.stored.const_value.numpy()
        np.testing.assert_array_equal(layer.weight, array.T if attributes.get("transB") else array)


def test_an_8_bit_lookup_returns_the_rounded_rows():
    model = one_layer()
    table = table_of(model)
    (embedding,) = embeddings(model.graph)
    stored, scales = quantize_embedding(embedding)
    model.graph.outputs.clear()
    model.graph.outputs.append(value(model, "h").producer().inputs[0])
    assert stored.const_value.dtype == ir.DataType.INT8
    rounded = stored.const_value.numpy() * scales.const_value.numpy()
    np.testing.assert_allclose(rounded, table, atol=float(scales.const_value.numpy().max()) / 2 + 1e-6)
    assert "embed.weight_float" not in model.graph.initializers


def test_tensors_find_their_rows():
    rows = {"a": 0, "a.b": 1, "l.weight_ih_l0": 2, "l.weight_ih_l0_reverse": 3, "l.weight_hh_l0": 4, "fc": 5}
    assert owners("a.b.weight_scale", rows) == ("a.b",)
    assert owners("a.c.weight", rows) == ("a",)
    assert owners("fc.0.weight", rows) == ("fc",)
    assert owners("l.weight_ih_l0_zero", rows) == ("l.weight_ih_l0", "l.weight_ih_l0_reverse")
    assert owners("l.bias_l0", rows) == ("l.weight_ih_l0", "l.weight_ih_l0_reverse", "l.weight_hh_l0")
    assert owners("c17", rows) == ()

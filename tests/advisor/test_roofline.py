"""The roofline: less work is never slower, each class of operators has its own rate, what is not given falls back."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.profile import profile_source
from advisor.roofline import UNPACKING, Roofline
from knowledge.deploy import deployed
from knowledge.layers import LayerTable, ModelInfo
from knowledge.load import load_knowledge
from knowledge.schema import Figure
from knowledge.techniques.catalog import build
from knowledge.values import Stage, Workload

KNOWN = load_knowledge()
SERVER, GPU, MOBILE = (KNOWN.target(name) for name in ("server-cpu", "server-gpu", "mobile"))
ZOO = {
    name: deployed(profile_source(f"zoo:{name}"))
    for name in ("digits-cnn", "digits-dwcnn", "digits-lstm", "digits-vit", "stdlib-lm", "stdlib-moe")
}


def figures(target=SERVER, **values):
    """A target with other figures."""
    return target.model_copy(update={name: v and Figure(value=v, source="estimated") for name, v in values.items()})


def latency(layers, target=SERVER, **work):
    return Roofline(target, Workload(**work)).latency(layers).total


def table(*rows, **info):
    """A table of dense layers, or of what the rows say."""
    facts = {"name": "m", "family": "transformer", "task": "image-classification"} | info
    filled = [{"path": f"l{i}", "kind": "linear", "outputs": 64, "positions": 16.0} | row for i, row in enumerate(rows)]
    return LayerTable.of(filled, ModelInfo(**facts))


def everywhere(layers, kind, **values):
    return layers.change(layers.kind == kind, **values)


def in_int8(layers, kind="linear"):
    return everywhere(layers, kind, bits=8, scale_bits=32, zero_bits=8)


# -- less work -------------------------------------------------------------------------------------


@settings(database=None, deadline=None)
@given(st.integers(1, 1024), st.integers(1, 1024), st.integers(1, 256), st.sampled_from([32, 16, 8]))
def test_a_narrower_layer_is_never_slower(a, b, positions, bits):
    row = {"inputs": 256, "positions": float(positions), "bits": bits}
    narrow, wide = (table(row | {"outputs": width}) for width in sorted((a, b)))
    assert latency(narrow) <= latency(wide) + 1e-12


@pytest.mark.parametrize("target", sorted(KNOWN.targets))
@pytest.mark.parametrize(("model", "technique"), [
    ("digits-cnn", "channels"), ("digits-dwcnn", "channels"), ("stdlib-lm", "layer_drop"), ("stdlib-moe", "layer_drop"),
])  # fmt: skip
def test_more_removed_is_never_slower(model, technique, target):
    layers, here = profile_source(f"zoo:{model}"), KNOWN.target(target)
    chains = [build(Stage(technique=technique, params={"ratio": ratio})) for ratio in (0.1, 0.3, 0.5)]
    steps = [latency(deployed(layers), here), *(latency(deployed(chain.effect(layers)), here) for chain in chains)]
    assert steps == sorted(steps, reverse=True)


def test_fewer_layers_cost_fewer_starts():
    one, two = (Roofline(SERVER, Workload()).latency(table(*[{"inputs": 64}] * n)) for n in (1, 2))
    assert two.overhead - one.overhead == pytest.approx(SERVER.node_overhead_us.value / 1e3)


def test_a_factored_layer_starts_twice():
    whole, factored = (
        Roofline(SERVER, Workload()).latency(table({"inputs": 64, "rank": rank})).overhead for rank in (0, 8)
    )
    assert factored - whole == pytest.approx(SERVER.node_overhead_us.value / 1e3)


# -- classes of operators --------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "factor"), [("linear", "int8_factor"), ("conv", "int8_conv_factor")])
def test_the_int8_rate_is_used_for_8_bits_only(kind, factor):
    slow, fast = figures(**{factor: 1.0}), figures(**{factor: 8.0})
    layers = table({"kind": kind, "inputs": 512, "outputs": 512, "positions": 256.0})
    for bits in (4, 16, 32):
        same = everywhere(layers, kind, bits=bits)
        assert latency(same, slow) == latency(same, fast)
    assert latency(in_int8(layers, kind), fast) < latency(in_int8(layers, kind), slow) / 3


def test_groups_of_8_bit_weights_compute_in_float():
    grouped = everywhere(in_int8(table({"inputs": 512, "outputs": 512, "positions": 256.0})), "linear", group_size=32)
    assert latency(grouped, figures(int8_factor=1.0)) == latency(grouped, figures(int8_factor=8.0))


def test_unpacking_makes_4_bit_decoding_slower_than_its_bytes():
    layers = table(*[{"inputs": 4096, "outputs": 4096, "positions": 1.0}] * 4)
    packed = everywhere(layers, "linear", bits=4, group_size=32, scale_bits=16)
    bare = everywhere(layers, "linear", bits=4)
    extra = 4 * 4096**2 * UNPACKING / (SERVER.gflops_fp32.value * 1e6)
    assert latency(packed) - latency(bare) == pytest.approx(extra)
    assert 1.5 < latency(layers) / latency(packed) < 4  # measured: 2.3 times for a decoder of 88 M weights


def test_int8_gains_little_on_tiny_matrices():
    tiny, large = (table(*[{"inputs": w, "outputs": w, "positions": p}] * 4) for w, p in ((32, 4.0), (768, 128.0)))
    target = figures(int8_overhead_us=4.0, quantize_gbps=50.0)
    gains = [latency(t, target) / latency(in_int8(t), target) for t in (tiny, large)]
    assert gains[0] < 1 < 2 < gains[1]


def test_quantizing_activations_costs_by_their_number():
    layers = in_int8(table({"inputs": 256, "positions": 64.0}))
    free, dear = (latency(layers, figures(quantize_gbps=speed)) for speed in (1e9, 10.0))
    assert dear - free == pytest.approx(4 * (256 + 64) * 64 / 10e6, rel=1e-6)


def test_projections_of_one_input_quantize_it_once():
    roles = [{"role": f"attention_{r}", "inputs": 256, "positions": 64.0} for r in "qkv"]
    shared, apart = in_int8(table(*roles)), in_int8(table(*[r | {"role": "body"} for r in roles]))

    def cost(layers):
        return latency(layers, figures(quantize_gbps=1.0)) - latency(layers, figures(quantize_gbps=1e9))

    assert cost(apart) - cost(shared) == pytest.approx(4 * 2 * 256 * 64 / 1e6, rel=1e-6)


def test_depthwise_convolutions_have_a_rate_of_their_own():
    plain = {"kind": "conv", "inputs": 64, "outputs": 64, "kernel": 9, "positions": 4096.0}
    slow, fast = figures(depthwise_factor=0.1), figures(depthwise_factor=1.0)
    depthwise = table(plain | {"groups": 64})
    assert latency(depthwise, slow) > 2 * latency(depthwise, fast)
    assert latency(table(plain), slow) == latency(table(plain), fast)


def test_int8_does_not_speed_depthwise_convolutions_up_unless_it_is_known_to():
    layers = in_int8(ZOO["digits-dwcnn"], "conv")
    depthwise = layers.keep(layers.groups > 1)
    assert latency(depthwise) >= latency(everywhere(depthwise, "conv", bits=32, scale_bits=0)) - 1e-9
    assert latency(depthwise, figures(int8_depthwise_factor=4.0)) < latency(depthwise)


def test_recurrent_layers_read_their_weights_at_every_step():
    layers = ZOO["digits-lstm"]
    hidden = int(layers.weights[layers.role == "hidden"][0])
    slow, fast = (latency(layers, figures(recurrent_gbps=speed)) for speed in (10.0, 1e9))
    assert slow - fast == pytest.approx(8 * 4 * hidden / 10e6, rel=1e-6)  # 8 rows of an image


def test_time_steps_start_one_after_another():
    layers = ZOO["digits-lstm"]
    free, dear = (latency(layers, figures(step_overhead_us=us)) for us in (1.0, 11.0))
    assert dear - free == pytest.approx(8 * 10 / 1e3)


def test_weights_that_fit_the_cache_are_read_faster():
    small, large = (table({"inputs": width, "outputs": width, "positions": 1.0}) for width in (256, 4096))
    target = figures(cache_bytes=4e6, cache_gbps=1000.0, bandwidth_gbps=10.0)
    per_byte = [latency(t, target) / t.stored_bytes for t in (small, large)]
    assert per_byte[1] * 1e6 == pytest.approx(1 / 10, rel=0.2)
    assert Roofline(target, Workload()).latency(large).memory > 10 * Roofline(target, Workload()).latency(small).memory


def test_experts_are_copied_for_every_token():
    layers = ZOO["stdlib-moe"]
    one, many = (latency(layers, seq_len=n) for n in (16, 256))
    assert many > 10 * one
    dense = layers.keep(layers.kind != "experts")
    assert latency(dense, seq_len=256) < 0.4 * many


def test_tiny_models_are_bound_by_starting_operators():
    found = Roofline(SERVER, Workload()).latency(ZOO["digits-vit"])
    assert found.overhead > 0.5 * found.total
    assert Roofline(SERVER, Workload(batch=64)).latency(ZOO["digits-vit"]).overhead < 0.5 * 64 * found.overhead


def test_half_precision_is_cast_where_the_target_computes_in_float():
    half = {name: layers.change(np.ones(len(layers), bool), bits=16, bias_bits=16) for name, layers in ZOO.items()}
    for name, layers in ZOO.items():
        assert latency(half[name]) >= latency(layers), name
    assert latency(half["stdlib-lm"], GPU) < latency(ZOO["stdlib-lm"], GPU)


# -- targets ---------------------------------------------------------------------------------------


def test_threads_share_the_rates_and_no_thread_beyond_the_target_s_counts():
    layers = deployed(profile_source("", arch="transformer"))
    times = [latency(layers, MOBILE, seq_len=128, threads=n) for n in (1, 2, 4, 8)]
    assert times[0] > times[1] > times[2] == times[3]
    assert times[0] == pytest.approx(4 * times[2], rel=0.1)  # but for the starts


@pytest.mark.parametrize("name", [
    "depthwise_factor", "int8_depthwise_factor", "cache_bytes", "cache_gbps", "int8_cache_gbps", "recurrent_gbps",
    "elementwise_gbps", "function_gbps", "quantize_gbps", "int8_window_ns", "int8_overhead_us", "light_overhead_us",
    "step_overhead_us", "request_overhead_us",
])  # fmt: skip
def test_every_optional_figure_counts_somewhere_and_falls_back(name):
    models = [*ZOO.values(), *(in_int8(in_int8(in_int8(m), "conv"), "lstm") for m in ZOO.values())]
    assert getattr(figures(**{name: None}), name) is None
    without = [latency(m, figures(**{name: None})) for m in models]
    with_it = [latency(m, figures(**{name: 1e-3 if name == "cache_bytes" else 777.0})) for m in models]
    assert np.isfinite(without).all()
    assert without != with_it


def test_a_gpu_reads_while_it_computes():
    layers = table({"inputs": 4096, "outputs": 4096, "positions": 64.0})
    target = figures(GPU, bandwidth_gbps=1.0, request_overhead_us=None)
    apart = 4 * 4096**2 / 1e6
    assert latency(layers, target) == pytest.approx(apart, rel=0.05)


def test_a_prediction_takes_some_200_operations_on_whole_columns_and_none_on_rows():
    layers = deployed(profile_source("", arch="moe"))
    longer = LayerTable.of(layers.rows() * 10, layers.info)
    roofline, wide = Roofline(SERVER, Workload(seq_len=128)), layers.bits > 8
    assert len(longer) > 1000
    predictions, longer_ones, operations = [], [], []
    for _ in range(50):
        predictions.append(seconds(lambda: roofline.latency(layers)))
        longer_ones.append(seconds(lambda: roofline.latency(longer)))
        operations.append(seconds(lambda: [np.where(wide, layers.outputs, layers.inputs) for _ in range(20)]) / 20)
    assert min(predictions) < 220 * min(operations)
    assert min(longer_ones) < 3 * min(predictions)


def seconds(work):
    start = time.thread_time()
    work()
    return time.thread_time() - start

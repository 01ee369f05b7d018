"""Timing, memory, fusion, and the verdict on a file."""

import dataclasses
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from backends.onnx import fusion, int8_static
from backends.onnx.environment import environment
from backends.onnx.explain import RULES, Case, explanations
from backends.onnx.facts import Facts, file_facts
from backends.onnx.memory import peak_memory_bytes
from backends.onnx.session import open_session
from backends.onnx.timing import Round, compare_files, compare_latency, quiet_rounds, ratio_of
from backends.onnx.verification import Verification, efficiency, judge, loss
from backends.onnx.verify import Recorder, download_bytes, parity, verify
from backends.onnx.workload import session_feed, workload_feed
from backends.tasks import task_for
from knowledge.techniques.fuse import GraphFusion
from knowledge.techniques.quantize import Int8Static
from knowledge.values import Budget, Drop, InputError, Latency, Limits, Measurement, Quality, Ratio, Workload

BUDGET = Budget(max_drop=Drop(amount=30, unit="pp"))


@pytest.fixture
def quantized(exported, tmp_path):
    found = exported("cnn")
    int8_static.apply(Int8Static(), found.path, tmp_path / "int8.onnx", found.context)
    return found, tmp_path / "int8.onnx"


# -- timing and memory -----------------------------------------------------------------------------


def test_a_larger_model_measures_slower(exported):
    small, large = exported("cnn"), exported("cnn", width=64)
    feed = session_feed(open_session(small.path, 1), small.split, Workload(batch=16))
    slow, fast, ratio = compare_latency(open_session(large.path, 1), open_session(small.path, 1), feed, rounds=7)
    assert slow.p50 > fast.p50
    assert 1.5 < ratio.low <= ratio.value <= ratio.high
    assert fast.p50 <= fast.p95


def test_the_same_file_twice_is_about_as_fast(exported):
    found = exported("cnn")
    feed = session_feed(open_session(found.path, 1), found.split, Workload(batch=8))
    _, _, ratio = compare_files(found.path, found.path, feed, 1)
    assert 0.7 < ratio.value < 1.4


def test_interrupted_rounds_do_not_count():
    quiet = [Round([2.0], [1.0], 0) for _ in range(6)]
    noisy = [Round([90.0], [1.0], 40) for _ in range(5)]
    assert quiet_rounds(quiet + noisy) == quiet
    assert ratio_of([quiet_rounds(quiet + noisy)]) == Ratio(value=2, low=2, high=2)


def test_the_interval_covers_the_spread():
    rng = np.random.default_rng(1)
    found = ratio_of([[Round([2 * s], [1.0], 0) for s in rng.lognormal(0, 0.2, 100)]])
    assert found.low < 2 < found.high
    assert found.high / found.low < 1.2
    lucky, unlucky = ([Round([ratio], [1.0], 0)] * 20 for ratio in (1.0, 1.5))  # how a session came to lie
    assert ratio_of([lucky, unlucky, lucky]).high == 1.5


@pytest.mark.parametrize("counts", [(30,), (15, 8, 11, 9), (1, 2), (40, 7, 7)])
def test_the_interval_is_that_of_drawing_one_after_the_other(counts):
    rng = np.random.default_rng(2)
    groups = [rng.lognormal(0.1 * number, 0.2, count) for number, count in enumerate(counts)]
    medians = []
    for _ in range(4000):
        chosen = [groups[number] for number in rng.integers(0, len(groups), len(groups))]
        medians.append(np.median(np.concatenate([rng.choice(group, len(group)) for group in chosen])))
    found = ratio_of([[Round([ratio], [1.0], 0) for ratio in group] for group in groups])
    assert found.value == np.median(np.concatenate(groups))
    np.testing.assert_allclose((found.low, found.high), np.percentile(medians, [2.5, 97.5]), rtol=0.02)


def test_memory_of_a_fresh_process_grows_with_the_weights(exported):
    small, large = exported("cnn"), exported("cnn", width=256)
    feed = workload_feed(small.path, small.split, Workload())
    sizes = [peak_memory_bytes(m.path, feed, 1) for m in (small, large)]
    weights = large.path.stat().st_size - small.path.stat().st_size
    assert sizes[1] - sizes[0] > 0.5 * weights
    assert sizes[0] < 500e6


def test_feeds_have_the_workload_s_shape(exported):
    found = exported("llama")
    feed = workload_feed(found.path, found.split, Workload(batch=50, seq_len=20))
    assert {a.shape for a in feed.values()} == {(50, 20)}
    np.testing.assert_array_equal(feed["input_ids"][:40, :12], found.split.inputs["input_ids"])
    with pytest.raises(InputError, match="input_ids"):
        workload_feed(found.path, exported("cnn").split, Workload())


# -- fusion ----------------------------------------------------------------------------------------


def test_a_fusion_that_is_not_faster_leaves_the_file_as_it_is(exported, tmp_path, monkeypatch):
    found = exported("llama")
    monkeypatch.setattr(fusion, "compare_files", lambda *a: (None, None, Ratio(value=1.2, low=0.99, high=1.4)))
    decision = fusion.apply(GraphFusion(), found.path, tmp_path / "out.onnx", found.context)
    assert not decision.kept
    assert (tmp_path / "out.onnx").read_bytes() == found.path.read_bytes()
    assert {r.observed.split(":")[0] for r in decision.skipped} == set(fusion.CANDIDATES)


def test_a_faster_fusion_is_kept_and_gives_the_same_numbers(exported, outputs, tmp_path, monkeypatch):
    found = exported("llama")
    monkeypatch.setattr(fusion, "compare_files", lambda *a: (None, None, Ratio(value=1.2, low=1.1, high=1.4)))
    out = tmp_path / "out.onnx"
    assert fusion.apply(GraphFusion(), found.path, out, found.context).kept
    assert out.read_bytes() != found.path.read_bytes()
    assert out.stat().st_size <= 1.01 * found.path.stat().st_size
    np.testing.assert_allclose(outputs(out, found.split), outputs(found.path, found.split), atol=1e-4)


def test_rewrites_that_break_or_change_the_model_are_refused(exported, tmp_path, monkeypatch):
    found, other = exported("cnn"), exported("cnn", width=64)

    def broken(path, out):
        raise KeyError("no such node")

    candidates = {"broken": broken, "other": lambda path, out: shutil.copyfile(other.path, out)}
    monkeypatch.setattr(fusion, "CANDIDATES", candidates)
    monkeypatch.setattr(fusion, "GROWTH", 100)
    decision = fusion.apply(GraphFusion(), found.path, tmp_path / "out.onnx", found.context)
    assert not decision.kept
    assert "KeyError" in decision.skipped[0].observed
    assert "outputs change by" in decision.skipped[1].observed


# -- verification ----------------------------------------------------------------------------------


def test_a_verification_holds_every_figure_of_the_design(quantized):
    found, path = quantized
    task = task_for("image-classification")
    workload = Workload(batch=1, threads=1)
    result = verify(
        found.path, path, task=task, split=found.split, reference=None, workload=workload, budget=BUDGET, rounds=7
    )
    assert result.baseline.size_bytes == found.path.stat().st_size
    assert result.compression == result.baseline.size_bytes / result.compressed.size_bytes > 1.5
    assert result.speedup.low <= result.speedup.value <= result.speedup.high
    assert result.compressed.download_bytes == download_bytes(path) < path.stat().st_size
    assert result.parity.cosine > 0.99
    assert 0 <= result.parity.top1_agreement <= 1
    assert result.verdict.within_budget
    assert result.environment.threads == 1
    dumped = result.model_dump(mode="json", by_alias=True)
    assert dumped["schema"] == "advisor.verification/1"
    assert set(dumped) == {
        "schema", "workload", "baseline", "compressed", "compression", "speedup", "efficiency",
        "parity", "environment", "verdict", "protocol", "explanations", "decoding", "packed", "lm_eval",
    }  # fmt: skip
    assert {"size_bytes", "latency_ms", "peak_memory_bytes", "quality", "download_bytes"} == set(dumped["baseline"])
    assert Verification.model_validate(dumped) == result


def test_a_file_equals_itself(exported):
    found = exported("cnn")
    outputs = Recorder(lambda batch: batch["pixels"])
    for batch in found.split.batches(8):
        outputs(batch)
    same = parity(outputs.outputs, outputs.outputs, scores=True)
    assert (same.max_abs_diff, same.top1_agreement) == (0, 1)
    assert same.cosine == pytest.approx(1)
    assert parity(outputs.outputs, outputs.outputs, scores=False).top1_agreement is None


def measurement(size=100, p50=1.0, memory=100, value=0.9, higher=True, unit="pp"):
    quality = Quality(metric="accuracy", value=value, higher_is_better=higher, unit=unit)
    latency = Latency(p50=p50, p95=p50)
    return Measurement(
        size_bytes=size, latency_ms=latency, peak_memory_bytes=memory, quality=quality, download_bytes=size
    )


SAME = Ratio(value=1, low=1, high=1)


def test_every_limit_can_be_missed():
    tight = Budget(
        max_drop=Drop(amount=1, unit="pp"), max_size_bytes=50, max_latency_ms=0.5, max_memory_bytes=50, min_speedup=2
    )
    verdict = judge(tight, measurement(), measurement(value=0.8), SAME)
    assert [m.limit for m in verdict.misses] == [
        Limits.QUALITY, Limits.SIZE, Limits.LATENCY, Limits.MEMORY, Limits.SPEEDUP,
    ]  # fmt: skip
    assert verdict.misses[0].measured == pytest.approx(10)
    assert "100 % above" in verdict.misses[1].text
    assert judge(tight, measurement(), measurement(50, 0.5, 50), Ratio(value=2, low=1, high=3)).within_budget


@pytest.mark.parametrize(
    ("before", "after", "higher", "unit", "lost"),
    [(0.9, 0.8, True, "pp", 10), (0.8, 0.6, True, "%", 25), (20, 25, False, "%", 25), (20, 10, False, "%", -50)],
)
def test_losses_are_counted_in_the_budget_s_unit(before, after, higher, unit, lost):
    a, b = (measurement(value=v, higher=higher).quality for v in (before, after))
    assert loss(a, b, Drop(amount=1, unit=unit)) == pytest.approx(lost)


def test_efficiency_is_quality_by_size_by_speed():
    twice = Ratio(value=2, low=2, high=2)
    assert efficiency(measurement(100, value=0.9), measurement(25, value=0.45), twice) == pytest.approx(0.5 * 4 * 2)
    lower = {"higher": False}
    assert efficiency(measurement(value=10, **lower), measurement(value=20, **lower), SAME) == pytest.approx(0.5)


# -- explanations ----------------------------------------------------------------------------------

PLAIN = Facts(
    file_bytes=1000, weight_bytes=980, integer_bytes=0, half_bytes=0, float_product_bytes=900, embedding_bytes=0,
    zero_share=0.0, nodes=20, unfused=0,
)  # fmt: skip


def case(speedup=1.0, latency_ms=10.0, workload=None, vnni=True, sums="exact", sizes=(1000, 250), **after):
    where = environment(1).model_copy(update={"vnni": vnni, "integer_sums": sums})
    return Case(
        baseline=measurement(sizes[0], latency_ms),
        compressed=measurement(sizes[1], latency_ms / speedup),
        before=PLAIN,
        after=dataclasses.replace(PLAIN, **after),
        speedup=Ratio(value=speedup, low=speedup, high=speedup),
        workload=workload or Workload(batch=1, seq_len=128),
        environment=where,
    )


@pytest.mark.parametrize(
    ("rule", "applies", "does_not"),
    [
        ("zeros-stored-densely", {"zero_share": 0.5}, {"zero_share": 0.01}),
        ("no-vnni", {"integer_bytes": 900, "vnni": False}, {"integer_bytes": 900, "vnni": True}),
        (
            "integer-sums-overflow",
            {"integer_products": True, "sums": "exact by option"},
            {"integer_products": False, "sums": "exact by option"},
        ),
        ("integer-sums-overflow", {"integer_products": True, "sums": "may overflow"}, {"integer_products": True}),
        ("half-precision-on-cpu", {"half_bytes": 900}, {"half_bytes": 900, "speedup": 1.9}),
        ("unfused-nodes", {"unfused": 3}, {"unfused": 0}),
        ("float-products-left", {"integer_bytes": 500}, {"integer_bytes": 900, "float_product_bytes": 10}),
        ("embedding-dominates", {"embedding_bytes": 600, "sizes": (1000, 600)}, {"embedding_bytes": 100}),
        (
            "bound-by-memory",
            {"weight_bytes": 20_000_000, "workload": Workload(batch=1, seq_len=1)},
            {"weight_bytes": 20_000_000},
        ),
        ("bound-by-overhead", {"latency_ms": 0.05}, {"latency_ms": 50.0}),
        ("graph-outweighs-weights", {"weight_bytes": 500}, {"weight_bytes": 990}),
    ],
)
def test_each_explanation_applies_when_it_should(rule, applies, does_not):
    assert rule in [e.rule for e in explanations(case(**applies))]
    assert rule not in [e.rule for e in explanations(case(**does_not))]


def test_every_rule_is_tested_and_a_good_result_needs_no_excuse():
    assert len(RULES) == 10
    good = case(speedup=3.0, integer_bytes=900, float_product_bytes=0)
    assert explanations(good) == ()


def test_facts_are_read_from_the_file(quantized):
    found, path = quantized
    before, after = file_facts(found.path), file_facts(path)
    assert before.integer_bytes == 0
    assert not before.quantized
    assert after.quantized
    assert after.integer_products > before.integer_products
    assert after.integer_bytes > 0.5 * after.weight_bytes
    assert after.float_product_bytes == after.unfused == 0
    assert before.float_product_bytes > 0.9 * before.weight_bytes


def test_zeros_and_embeddings_are_counted(exported, tmp_path):
    found = exported("gpt2")
    model = onnx.load(found.path)
    weight = next(i for i in model.graph.initializer if i.name == "transformer.h.0.mlp.c_fc.weight")
    weight.CopyFrom(numpy_helper.from_array(np.zeros(tuple(weight.dims), np.float32), weight.name))
    onnx.save(model, tmp_path / "zeros.onnx")
    before, after = file_facts(found.path), file_facts(tmp_path / "zeros.onnx")
    assert after.zero_share > before.zero_share + 0.05
    assert before.embedding_bytes == 4 * (512 + 64) * 64

"""Estimates: sizes follow the tables, latency the roofline, quality the claims; loss never falls with strength."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.predict import Predictor, Roofline, estimate
from advisor.profile import profile_source
from advisor.quality import QualityModel, curve, with_recovery
from knowledge.conditions import FAMILIES
from knowledge.deploy import deployed
from knowledge.load import Knowledge, load_knowledge
from knowledge.techniques.catalog import CATALOG, build
from knowledge.values import InputError, Stage, Workload

KNOWN = load_knowledge()
BERT = profile_source("", arch="transformer")
RESNET = profile_source("", arch="cnn")
MINILM = profile_source("zoo:minilm")
SERVER = KNOWN.target("server-cpu")
WORK = Workload(seq_len=128)


def stage(name, **params):
    return Stage(technique=name, params=params)


def built(*stages):
    return [build(s) for s in stages]


def model(family="transformer", metric="accuracy", unit="pp"):
    return QualityModel(KNOWN, family, metric, unit)


# -- size ------------------------------------------------------------------------------------------


def test_size_is_the_deployed_table_and_its_graph():
    found = estimate(RESNET, [stage("int8_static")], SERVER, Workload(), KNOWN)
    exact = build(stage("int8_static")).effect(deployed(RESNET)).stored_bytes
    assert exact < found.size_bytes.mid < 1.02 * exact
    assert 3.7 < found.compression.mid < 4.0


def test_nothing_changes_nothing():
    found = estimate(BERT, [], SERVER, WORK, KNOWN)
    assert (found.compression.low, found.compression.mid, found.compression.high) == (1, 1, 1)
    assert (found.speedup.low, found.speedup.mid, found.speedup.high) == (1, 1, 1)
    assert (found.quality_drop.low, found.quality_drop.high) == (0, 0)


def test_half_the_channels_leave_a_quarter():
    found = estimate(RESNET, [stage("channels", ratio=0.5)], SERVER, Workload(), KNOWN)
    assert 3.5 < found.compression.mid < 4.0


def test_embeddings_in_int8_are_half_of_a_small_encoder():
    both = [
        estimate(MINILM, [stage("int8_dynamic", embeddings=e)], SERVER, WORK, KNOWN).size_bytes.mid
        for e in (True, False)
    ]
    assert both[0] == pytest.approx(23e6, rel=0.02)  # measured: 23.2 MB and 59.0 MB
    assert both[1] == pytest.approx(59e6, rel=0.03)


def test_unknown_techniques_and_parameters_are_input_errors():
    with pytest.raises(InputError):
        estimate(BERT, [stage("quantise")], SERVER, WORK, KNOWN)
    with pytest.raises(InputError):
        estimate(BERT, [stage("svd", ratio=3)], SERVER, WORK, KNOWN)


# -- latency ---------------------------------------------------------------------------------------


def latency(layers, target="server-cpu", work=WORK):
    return Roofline(KNOWN.target(target), work).latency(deployed(layers)).total


def test_roofline_is_arithmetic_where_arithmetic_is_the_limit():
    wide = RESNET
    macs = wide.macs
    target = KNOWN.target("server-cpu")
    bound = 2 * macs / (target.gflops_fp32.value * 1e6)
    assert bound < latency(wide, work=Workload(threads=2)) < 1.5 * bound


def test_int8_on_minilm_gains_what_was_measured():
    found = estimate(MINILM, [stage("int8_dynamic")], SERVER, WORK, KNOWN).speedup
    assert found.low < 1.9 < found.high  # measured 1.6 to 1.9
    assert 1.5 < found.mid < 2.4


def test_fp16_gains_only_where_the_target_has_it():
    assert estimate(BERT, [stage("fp16")], SERVER, WORK, KNOWN).speedup.mid == pytest.approx(1.0, abs=0.01)
    assert estimate(BERT, [stage("fp16")], KNOWN.target("server-gpu"), WORK, KNOWN).speedup.mid > 2


def test_zeros_gain_nothing_without_kernels_for_them():
    found = estimate(BERT, [stage("magnitude", ratio=0.9)], SERVER, WORK, KNOWN)
    assert found.speedup.mid == pytest.approx(1.0)
    assert found.compression.mid == pytest.approx(1.0)
    sparse = SERVER.model_copy(update={"accelerates": {"unstructured": "estimated"}})
    assert estimate(BERT, [stage("magnitude", ratio=0.9)], sparse, WORK, KNOWN).speedup.mid > 2


def test_no_dot_product_no_speed():
    edge = estimate(BERT, [stage("int8_dynamic")], KNOWN.target("edge"), WORK, KNOWN).speedup.mid
    assert edge < 1.3


@settings(database=None, deadline=None)
@given(st.integers(1, 512), st.integers(1, 512))
def test_longer_sequences_take_longer(a, b):
    short, long = sorted((a, b))
    assert latency(BERT, work=Workload(seq_len=short)) <= latency(BERT, work=Workload(seq_len=long)) + 1e-9


@settings(database=None, deadline=None)
@given(st.integers(1, 64))
def test_batches_take_longer_but_not_in_proportion(batch):
    one, many = latency(MINILM), latency(MINILM, work=Workload(seq_len=128, batch=batch))
    assert one <= many <= batch * one + 1e-9


def test_fewer_threads_are_slower():
    one, four = (latency(BERT, "mobile", Workload(seq_len=128, threads=threads)) for threads in (1, 4))
    assert one > four


def test_one_token_waits_for_memory():
    found = Roofline(SERVER, Workload(seq_len=1)).latency(deployed(BERT))
    assert found.memory > 0.5 * found.total


@pytest.mark.parametrize("target", sorted(KNOWN.targets))
@pytest.mark.parametrize("arch", FAMILIES)
def test_every_target_gives_finite_figures(target, arch):
    layers = profile_source("", arch=arch)
    predictor = Predictor(layers, KNOWN.target(target), Workload(), KNOWN)
    found = predictor.estimate(predictor.chain(built(stage("fp16"))))
    for name in type(found).model_fields:
        figure = getattr(found, name)
        assert np.isfinite([figure.low, figure.mid, figure.high]).all()
        assert figure.low <= figure.mid <= figure.high


# -- quality ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dial", "values"), [
    ("distill", "compression", (1.5, 2, 3, 4)), ("channels", "ratio", (0.1, 0.3, 0.5, 0.7)),
    ("layer_drop", "ratio", (0.1, 0.3, 0.6)), ("magnitude", "ratio", (0.2, 0.5, 0.9)),
    ("svd", "ratio", (0.9, 0.6, 0.2)), ("int8_dynamic", "smooth", (0.8, 0.4, 0.0)),
])  # fmt: skip
@pytest.mark.parametrize("metric", ["accuracy", "perplexity", "similarity"])
@pytest.mark.parametrize("recovered", [True, False])
def test_loss_never_falls_with_strength(name, dial, values, metric, recovered):
    quality = model(metric=metric, unit="pp" if metric == "accuracy" else "%")
    losses = [quality.stage(build(stage(name, **{dial: v})), recovered).mid for v in values]
    assert losses == sorted(losses)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(c.id for c in CATALOG.values() if c.phase is not None and not c.lossless))
def test_recovery_never_hurts_and_intervals_are_ordered(family, name):
    quality = model(family)
    before, after = (quality.stage(build(stage(name)), r) for r in (False, True))
    assert after.mid <= before.mid + 1e-9
    for spread in (before, after):
        assert 0 <= spread.low <= spread.mid <= spread.high
        assert spread.high - spread.low >= 0.1
        assert spread.basis


def test_chains_lose_more_than_their_parts_and_less_than_all_the_worst():
    quality = model()
    parts = [quality.chain(built(stage(n))) for n in ("distill", "int8_dynamic")]
    both = quality.chain(built(stage("distill"), stage("int8_dynamic")))
    assert both.mid == pytest.approx(sum(p.mid for p in parts))
    assert max(p.high for p in parts) < both.high < sum(p.high for p in parts)


def test_relative_losses_compound():
    quality = model(metric="perplexity", unit="%")
    parts = [quality.chain(built(stage(n))) for n in ("distill", "int8_dynamic")]
    both = quality.chain(built(stage("distill"), stage("int8_dynamic")))
    assert both.mid == pytest.approx(100 * ((1 + parts[0].mid / 100) * (1 + parts[1].mid / 100) - 1))


def test_what_was_measured_is_in_the_interval():
    quality = model(metric="similarity", unit="%")
    dynamic = quality.chain(built(stage("int8_dynamic")))
    assert dynamic.low < 0.65 < dynamic.high
    assert "measured" in dynamic.basis
    smooth = quality.chain(built(stage("int8_dynamic", smooth=0.8)))
    assert smooth.low < 0.16 < smooth.high
    channels = model("cnn").chain(built(stage("channels"), stage("finetune"), stage("int8_static")))
    assert channels.low < 1.2


def test_no_figure_is_said_so_and_wide():
    found = model().stage(build(stage("svd")), False)
    assert "assumed" in found.basis
    assert found.high >= 3 * found.mid - 1e-9


def test_figures_of_other_metrics_are_carried_over_in_words():
    assert "carried over" in model(metric="perplexity", unit="%").stage(build(stage("layer_drop")), True).basis


def test_better_evidence_makes_narrower_intervals():
    claim = next(c for c in KNOWN.claims.values() if c.id == "minilm-int8-static")
    widths = []
    for status in ("measured", "paper", "unsourced"):
        only = Knowledge({}, {"c": claim.model_copy(update={"status": status})}, {}, {})
        spread = QualityModel(only, "transformer", "similarity", "%").stage(build(stage("int8_static")), False)
        widths.append(spread.high - spread.low)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_curve_pools_figures_that_contradict_each_other():
    first = next(c for c in KNOWN.claims.values() if c.id == "nncf-resnet50-40")
    claims = [
        first.model_copy(update={"params": {"ratio": r}, "drop": d}) for r, d in ((0.2, 1.0), (0.4, 0.5), (0.6, 3.0))
    ]
    assert curve(claims, 0.2) == pytest.approx(0.75)
    assert curve(claims, 0.4) == pytest.approx(0.75)
    assert curve(claims, 0.1) == pytest.approx(0.375)
    assert curve(claims, 0.5) == pytest.approx(1.875)
    assert curve(claims, 0.66) == pytest.approx(3.0 * 1.1**2)


def test_recovery_covers_what_stands_before_it():
    chain = built(stage("distill"), stage("channels"), stage("finetune"), stage("magnitude"), stage("int8_static"))
    assert [r for _, r in with_recovery(chain)] == [True, True, False, False]


def test_records_that_are_not_for_estimates_stay_out():
    assert not KNOWN.claims["minilm-int8-static-all"].estimate
    assert all(c.id != "minilm-int8-static-all" for c in KNOWN.claims_by_technique["int8_static"])


def test_outlook_of_a_file_does_not_touch_the_table():
    before = MINILM.stored_bytes
    estimate(MINILM, [stage("int8_dynamic")], SERVER, WORK, KNOWN)
    assert before == MINILM.stored_bytes
    assert dataclasses.is_dataclass(MINILM)

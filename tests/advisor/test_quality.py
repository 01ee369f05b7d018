"""Losses by published figures and by measured chains: curves never fall, intervals are ordered, own rows move most."""

import numpy as np
import pytest

from advisor import curves
from advisor.curves import Curve, Scale
from advisor.learned import Kin, Learned, Outcome, StageKey, outcomes, quantile, weighted_quantile, with_recovery
from advisor.profile import profile_source
from advisor.published import PublishedLosses, along
from advisor.quality import QualityModel
from knowledge.conditions import FAMILIES
from knowledge.evidence import Evidence
from knowledge.layers import ModelInfo
from knowledge.load import Knowledge, load_knowledge
from knowledge.measured import load_evidence
from knowledge.techniques.catalog import CATALOG, build
from knowledge.values import Stage, Workload

KNOWN = load_knowledge()
LOSSY = sorted(c.id for c in CATALOG.values() if c.phase is not None and not c.lossless)
NAMED = ("digits-cnn", "digits-dwcnn", "digits-lstm", "digits-vit")


def stage(name, **params):
    return Stage(technique=name, params=params)


def built(*stages):
    return [build(s) for s in stages]


def info(family="transformer", classes=10, **facts):
    return ModelInfo("m", family, "image-classification", classes=classes, **facts)


def model(family="transformer", metric="accuracy", evidence=(), name=""):
    return QualityModel(KNOWN, info(family), metric, "pp" if metric == "accuracy" else "%", evidence, name)


def row(model, drop, *stages, metric="accuracy", arch="cnn", subfamily="residual-cnn"):
    spelled = tuple(Stage(technique=s.technique, params=build(s).model_dump(mode="json")) for s in stages)
    return Evidence(
        id=f"{model}-{spelled}", model=model, model_key=model, arch=arch, subfamily=subfamily, parameters=1000,
        task="image-classification", metric=metric, unit="pp" if metric == "accuracy" else "%", protocol="test",
        stages=spelled, baseline_quality=0.99, quality=0.99 - drop / 100, drop=drop, baseline_size_bytes=100,
        size_bytes=50, workload=Workload(), baseline_latency_ms=1.0, latency_ms=1.0, speedup=1.0, machine="test",
        command="test",
    )  # fmt: skip


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
@pytest.mark.parametrize("family", ["cnn", "transformer"])
def test_training_is_never_worse_than_what_it_starts_from(family, metric):
    known = model(family, metric, load_evidence())
    (trained,), (plain,) = built(stage("qat")), built(stage("int8_static"))
    assert known.stage(trained, True).loss <= known.stage(plain, False).loss


def family_of_rows(losses, name="channels", **params):
    """Rows of several models that lose in proportion: model k loses k times as much."""
    return [
        row(f"m{k}", k * drop, stage(name, ratio=ratio, **params))
        for k in (1, 2, 3, 4)
        for ratio, drop in losses.items()
    ]


# -- scale and curves ------------------------------------------------------------------------------


def test_the_scale_is_the_difference_for_small_losses_and_the_ratio_for_large_ones():
    scale = Scale(knee=1.0)
    small = [scale.of(loss) for loss in (0.0, 0.01, 0.02)]
    assert small[2] - small[1] == pytest.approx(small[1] - small[0], rel=1e-3)
    large = [scale.of(loss) for loss in (100.0, 200.0, 400.0)]
    assert large[2] - large[1] == pytest.approx(large[1] - large[0], rel=1e-3)


def test_no_loss_exceeds_what_there_is_to_lose():
    scale = Scale(knee=1.0, most=90.0)
    assert scale.loss(1e9) <= 90.0
    assert np.isfinite([scale.of(90.0), scale.of(100.0)]).all()


def test_isotonic_agrees_with_scikit_learn():
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 30):
        values, weights = rng.normal(size=n), rng.uniform(0.1, 3, n)
        wanted = IsotonicRegression().fit_transform(np.arange(n), values, sample_weight=weights)
        np.testing.assert_allclose(curves.isotonic(values, weights), wanted, atol=1e-12)


def test_a_curve_starts_at_nothing_never_falls_and_goes_on():
    curve = Curve.through([0.2, 0.2, 0.4, 0.6], [1.0, 3.0, 1.0, 4.0], [1, 1, 2, 1])
    found = [curve.at(s) for s in np.linspace(0, 1.2, 25)]
    assert found[0] == 0
    assert found == sorted(found)
    assert np.sinh(curve.at(1.2)) == pytest.approx(4 * np.sinh(curve.at(0.6)))


# -- published figures -----------------------------------------------------------------------------


def test_figures_of_two_protocols_never_share_a_curve():
    one = next(c for c in KNOWN.claims.values() if c.id == "wanda-magnitude-7b")
    other = one.model_copy(update={"id": "other", "protocol": "WikiText-2, sequence length 2048", "drop": 50.0})
    for claims in ({"a": one, "b": other}, {"b": other, "a": one}):
        losses = PublishedLosses(Knowledge({}, claims, {}, {}), "transformer", "perplexity")
        assert losses.stage(build(stage("magnitude", ratio=0.5)), False).loss in (one.drop, other.drop)


def test_a_line_pools_figures_that_contradict_each_other():
    first = next(c for c in KNOWN.claims.values() if c.id == "nncf-resnet50-40")
    claims = [
        first.model_copy(update={"params": {"ratio": r}, "drop": d}) for r, d in ((0.2, 1.0), (0.4, 0.5), (0.6, 3.0))
    ]
    assert along(claims, 0.2) == pytest.approx(0.75)
    assert along(claims, 0.4) == pytest.approx(0.75)
    assert along(claims, 0.1) == pytest.approx(0.375)
    assert along(claims, 0.5) == pytest.approx(1.875)
    assert along(claims, 0.66) == pytest.approx(3.0 * 1.1**2)


def test_no_figure_is_said_so_and_wide():
    only = QualityModel(Knowledge({}, {}, {}, {}), info(), "accuracy", "pp")
    found = only.chain(built(stage("svd")))
    assert "assumed" in found.basis
    assert found.high >= 3 * found.mid - 1e-9


def test_figures_of_other_metrics_are_carried_over_in_words():
    only = {c.id: c for c in KNOWN.claims.values() if c.technique == "layer_drop" and c.metric == "accuracy"}
    quality = QualityModel(Knowledge({}, only, {}, {}), info(), "perplexity", "%")
    assert "carried over" in quality.chain(built(stage("layer_drop"))).basis


def test_better_sources_make_narrower_intervals():
    claim = next(c for c in KNOWN.claims.values() if c.id == "minilm-int8-static")
    widths = []
    for status in ("measured", "paper", "unsourced"):
        only = Knowledge({}, {"c": claim.model_copy(update={"status": status})}, {}, {})
        spread = QualityModel(only, info(), "similarity", "%").chain(built(stage("int8_static")))
        widths.append(spread.high - spread.low)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


@pytest.mark.parametrize("name", [t for t in LOSSY if isinstance(CATALOG[t].space().get(CATALOG[t].dial), object)])
@pytest.mark.parametrize("metric", ["accuracy", "perplexity", "similarity"])
def test_loss_never_falls_with_strength(name, metric):
    cls = CATALOG[name]
    dial = cls.space().get(cls.dial)
    if not hasattr(dial, "low"):
        return
    quality = model(metric=metric)
    chosen = [cls.model_validate({cls.dial: v}) for v in (dial.low, dial.high)]
    chosen.sort(key=lambda t: t.strength())
    assert quality.chain(chosen[:1]).mid <= quality.chain(chosen[1:]).mid + 1e-9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LOSSY)
def test_intervals_are_ordered_and_no_stage_is_quite_sure(family, name):
    spread = model(family).chain([CATALOG[name]()])
    assert spread.low <= spread.mid <= spread.high
    assert spread.high - spread.low > 0
    assert spread.basis


def test_chains_lose_more_than_their_parts_and_less_than_all_the_worst():
    quality = model()
    parts = [quality.chain(built(stage(n))) for n in ("distill", "int8_dynamic")]
    both = quality.chain(built(stage("distill"), stage("int8_dynamic")))
    assert both.mid == pytest.approx(sum(p.mid for p in parts))
    assert max(p.high for p in parts) < both.high < sum(p.high for p in parts)


def test_relative_losses_compound():
    quality = model(metric="perplexity")
    parts = [quality.chain(built(stage(n))) for n in ("distill", "int8_dynamic")]
    both = quality.chain(built(stage("distill"), stage("int8_dynamic")))
    assert both.mid == pytest.approx(100 * ((1 + parts[0].mid / 100) * (1 + parts[1].mid / 100) - 1))


def test_recovery_covers_what_stands_before_it():
    chain = built(stage("distill"), stage("channels"), stage("finetune"), stage("magnitude"), stage("int8_static"))
    assert [r for _, r in with_recovery(chain)] == [True, True, False, False]


# -- measured chains -------------------------------------------------------------------------------


def test_measurements_move_the_estimate_from_the_published_figure():
    half = built(stage("channels", ratio=0.5))
    published = model("cnn").chain(half).mid
    rows = family_of_rows({0.3: 4.0, 0.5: 10.0})
    moved = model("cnn", evidence=rows).chain(half)
    assert abs(moved.mid - 25.0) < abs(published - 25.0)  # 10, 20, 30 and 40 were measured
    assert "measured on embedded models" in moved.basis


def test_what_only_this_model_measured_counts_against_published_figures_not_beside_them():
    """A loss that no other model teaches is this model's difference from what is published, not something on top."""
    (plain,) = built(stage("int8_dynamic", smooth=0.0))
    for drop in (0.1, 4.0):
        rows = [row("m4", drop, stage("int8_dynamic", smooth=0.0), arch="transformer", subfamily="encoder")]
        own = model("transformer", evidence=rows, name="m4").chain((plain,))
        published = model("transformer").chain((plain,)).mid
        assert min(drop, published) <= own.mid <= max(drop, published)
        assert abs(own.mid - drop) < 0.3 * abs(published - drop)


def test_this_model_s_own_chains_move_most_and_narrow_the_interval():
    half = built(stage("channels", ratio=0.5))
    rows = family_of_rows({0.3: 4.0, 0.5: 10.0})
    foreign = model("cnn", evidence=rows).chain(half)
    own = model("cnn", evidence=rows, name="m4").chain(half)
    assert own.mid > foreign.mid  # m4 loses 40
    assert own.high - own.low < foreign.high - foreign.low
    assert "on this model" in own.basis


def test_a_chain_of_this_model_tells_of_longer_ones_by_the_loss_they_share():
    rows = family_of_rows({0.3: 4.0, 0.5: 10.0}) + [row(f"m{k}", 0.1, stage("int8_static")) for k in (1, 2, 3, 4)]
    chain = built(stage("channels", ratio=0.5), stage("int8_static"))
    usual, robust = (model("cnn", evidence=rows, name=name).chain(chain).mid for name in ("", "m1"))
    assert robust < usual


def test_nearer_kin_count_more():
    near = [row(f"n{k}", 2.0, stage("channels", ratio=0.5)) for k in range(3)]
    far = [row(f"f{k}", 40.0, stage("channels", ratio=0.5), subfamily="depthwise-cnn") for k in range(3)]
    found = {
        sub: QualityModel(
            KNOWN, info("cnn", subfamily=sub), "accuracy", "pp", near + far
        ).chain(built(stage("channels", ratio=0.5))).mid
        for sub in ("residual-cnn", "depthwise-cnn")
    }  # fmt: skip
    assert found["residual-cnn"] < found["depthwise-cnn"]


def test_other_metrics_stay_out():
    rows = family_of_rows({0.5: 10.0})
    assert model("cnn", "perplexity", rows).chain(built(stage("channels"))) == model("cnn", "perplexity").chain(
        built(stage("channels"))
    )


def test_conformal_quantiles_count_the_new_value_too():
    values = np.arange(1.0, 10.0)
    assert quantile(values, 0.8) == 8.0
    assert quantile(values, 0.95) == 9.0
    assert quantile(np.arange(1.0, 100.0), 0.8) == 80.0


def test_weighted_quantiles_lie_between_the_middles_of_the_weights():
    values = np.array([0.0, 1.0, 2.0])
    assert weighted_quantile(values, np.ones(3), 0.5) == 1.0
    assert weighted_quantile(values, np.array([1.0, 1.0, 8.0]), 0.6) == 2.0
    assert weighted_quantile(values, np.ones(3), 0.0) == 0.0


def learned(rows, family="cnn", subfamily="residual-cnn"):
    return Learned(outcomes(rows), Scale(1.0, 90.0), Kin(family, subfamily), compound=False)


def test_residuals_of_the_same_sort_of_chain_count_most():
    """Models agree on INT8 and differ in channels: the interval of INT8 is the narrower one."""
    rows = family_of_rows({0.3: 4.0, 0.5: 10.0})
    rows += [row(f"m{k}", 0.1 * k, stage("int8_static", smooth=s)) for k in (1, 2, 3, 4) for s in (0.0, 0.3)]
    found = learned(rows)
    widths = []
    for name in ("int8_static", "channels"):
        low, high = found.middle((StageKey(name, "", False, 0.5),))
        widths.append(high - low)
    assert widths[0] < widths[1]


def test_the_margin_makes_the_interval_hold_four_in_five_chains_of_a_model_left_out():
    """On rows drawn from one law, a model that was never seen lies inside as often as promised."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(8):
        rows = [
            row(f"m{k}", float(4 * ratio * rng.lognormal(0, 0.7)), stage("channels", ratio=ratio))
            for k in range(6)
            for ratio in (0.2, 0.3, 0.4, 0.5, 0.6)
        ]
        found = learned([r for r in rows if r.model != "m0"])
        for outcome in outcomes(r for r in rows if r.model == "m0"):
            low, high = found.bounds(outcome.stages)
            held.append(low <= found.residual(outcome) <= high)
    assert 0.7 <= np.mean(held) <= 0.99


def test_two_models_do_not_tell_how_far_models_lie_apart():
    assert learned(family_of_rows({0.5: 10.0})[:2]).bounds((StageKey("channels", "", False, 0.5),)) is None


def test_methods_of_one_technique_have_curves_of_their_own():
    rows = [
        row(f"m{k}", loss, stage("magnitude", ratio=0.5, scope=scope))
        for k in range(3)
        for scope, loss in (("global", 1.0), ("local", 30.0))
    ]
    found = model("cnn", evidence=rows)
    gentle, harsh = (found.chain(built(stage("magnitude", ratio=0.5, scope=s))).mid for s in ("global", "local"))
    assert gentle < 5 < harsh


def test_models_of_quite_another_size_tell_little():
    rows = [row(f"m{k}", 40.0, stage("channels", ratio=0.5)) for k in range(4)]  # of a thousand parameters
    near, far = (
        QualityModel(KNOWN, info("cnn"), "accuracy", "pp", rows, parameters=p).chain(built(stage("channels"))).mid
        for p in (1000, 25_000_000)
    )
    assert near > 30
    assert far < 10


def test_a_model_s_other_chains_predict_one_that_is_left_out():
    """On the shipped measurements: four in five inside, in much narrower intervals than without the model's own."""
    rows = [r for r in load_evidence() if r.metric == "accuracy"]
    assert {r.model for r in rows} == {f"zoo:{name}" for name in NAMED}
    inside, widths = [], {True: 0.0, False: 0.0}
    for name in sorted({r.model for r in rows}):
        layers = profile_source(name)
        mine, rest = ([r for r in rows if (r.model == name) == own] for own in (True, False))
        for measured in mine[::2]:
            for own in (True, False):
                known = [r for r in mine if r is not measured and own] + rest
                quality = QualityModel(KNOWN, layers.info, "accuracy", "pp", known, name, layers.parameters)
                spread = quality.chain([build(s) for s in measured.stages])
                widths[own] += spread.high - spread.low
                inside += [spread.low <= measured.drop <= spread.high] if own else []
    assert 0.7 <= np.mean(inside) <= 0.92
    assert widths[True] < 0.7 * widths[False]


def test_an_outcome_needs_techniques_that_exist_and_a_strength():
    gone = row("m1", 1.0, stage("fp16")).model_copy(update={"stages": (Stage(technique="no-more"),)})
    allowed = row("m1", 1.0, stage("wanda", ratio=0.5, max_loss=0.1))  # it may have removed any share
    found = outcomes([gone, allowed, row("m1", 1.0, stage("fp16"))])
    assert [o for o in found if isinstance(o, Outcome)] == found
    assert len(found) == 1

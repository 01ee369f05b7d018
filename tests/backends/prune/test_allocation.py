"""Zeros shared out among the parts of a model: the arithmetic, and what it gains on trained models."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from backends.context import Context
from backends.prune.allocation import LEVELS, by_losses, by_outliers, largest_ratio, losses_at, reach
from backends.prune.by_inputs import apply
from backends.sources import open_source
from knowledge.techniques.prune_once import SparseGpt, Wanda
from knowledge.values import Workload

WEIGHTS = np.array([4.0, 1.0, 2.0, 3.0])
CURVES = np.array([[1e-3, 0.02, 0.2, 0.9], [2e-3, 0.03, 0.1, 0.2], [1e-4, 0.01, 0.5, 3.0], [4e-3, 0.04, 0.3, 1.0]])


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("bound", [0.02, 0.08, 0.5])
def test_ratios_keep_the_total_and_the_bound(ratio, bound):
    outliers = np.random.default_rng(0).uniform(0, 0.1, 4)
    for found in (by_outliers(outliers, WEIGHTS, ratio, bound), by_losses(CURVES, WEIGHTS, ratio, bound)):
        assert np.average(found, weights=WEIGHTS) == pytest.approx(ratio, abs=1e-9)
        assert np.abs(found - ratio).max() <= reach(ratio, bound) + 1e-9
        assert (found > 0).all()
        assert (found < 1).all()


def test_parts_that_are_alike_share_alike():
    same = np.full(4, 0.3)
    assert by_outliers(same, WEIGHTS, 0.6, 0.08) == pytest.approx(np.full(4, 0.6))
    assert by_losses(np.tile(CURVES[:1], (4, 1)), np.ones(4), 0.6, 0.08) == pytest.approx(np.full(4, 0.6))
    assert by_losses(np.zeros((4, 4)), np.ones(4), 0.6, 0.08) == pytest.approx(np.full(4, 0.6))


def total(ratios):
    return float(losses_at(CURVES, ratios[:, None]).sum())


def test_losses_are_least_at_the_total():
    found = by_losses(CURVES, WEIGHTS, 0.6, 0.2)
    rng, least, tried = np.random.default_rng(0), total(found), 0
    for _ in range(300):
        step = rng.normal(0, 0.03, 4)
        other = found + step - np.average(step, weights=WEIGHTS)
        if np.abs(other - 0.6).max() <= 0.2:
            tried += 1
            assert least <= total(other) * 1.001  # the program's steps are a hundredth
    assert tried > 50
    assert least < 0.95 * total(np.full(4, 0.6))


def test_a_curve_goes_through_its_levels_and_never_falls():
    assert losses_at(CURVES, np.tile(LEVELS, (4, 1))) == pytest.approx(CURVES)
    noisy = np.array([[0.01, 0.008, 0.2, 0.1]])
    along = losses_at(noisy, np.linspace(0.001, 0.999, 200)[None])[0]
    assert (np.diff(along) >= -1e-12).all()
    assert 0 < along[0] < 1e-4


@pytest.mark.parametrize("bound", [0.05, 0.2])
def test_a_budget_of_loss_gives_the_largest_ratio_within_it(bound):
    found = []
    for budget in (0.01, 0.05, 0.5):
        ratio = largest_ratio(CURVES, lambda at: by_losses(CURVES, WEIGHTS, at, bound), budget)
        more = by_losses(CURVES, WEIGHTS, ratio + 0.002, bound)
        assert total(by_losses(CURVES, WEIGHTS, ratio, bound)) <= budget < total(more)
        found.append(ratio)
    assert found == sorted(set(found))
    assert largest_ratio(CURVES, lambda at: by_losses(CURVES, WEIGHTS, at, bound), 100) == 0.95
    assert largest_ratio(CURVES, lambda at: by_losses(CURVES, WEIGHTS, at, bound), 1e-12) == 0.01


@pytest.mark.parametrize(
    ("kind", "allocation"),
    [(kind, "outliers") for kind in ("llama", "mixtral", "bert")]
    + [(kind, "sensitivity") for kind in ("llama", "bert")],
)
@pytest.mark.parametrize("technique", [Wanda, SparseGpt])
def test_parts_get_ratios_of_their_own_under_the_exact_total(kind, allocation, technique, small):
    model = small.transformer(kind, blocks=3)
    context = small.context(model)
    asked = technique(ratio=0.57, allocation=allocation, bound=0.1)
    _, decision = apply(asked, model, context)
    after = asked.effect(context.layers, decision)
    where = np.isin(after.path, list(decision.density))
    weights, lost = after.weights[where], (1 - after.density[where]) * after.weights[where]
    matrices = float(after.copies[where].sum())
    assert lost.sum() == pytest.approx(0.57 * weights.sum(), abs=matrices)  # one weight each
    assert np.abs(lost / weights - 0.57).max() <= 0.1 + 1 / weights.min() * matrices
    by_block = {b: set(np.round(lost / weights, 2)[after.block[where] == b]) for b in range(3)}
    assert len({max(ratios) for ratios in by_block.values()} | {min(ratios) for ratios in by_block.values()}) > 1
    within = max(max(ratios) - min(ratios) for ratios in by_block.values())
    assert within <= 0.011 if allocation == "outliers" else within > 0.05
    assert not [r for r in decision.skipped if "ratio" in r.rule]


def test_measuring_changes_no_weight_and_the_same_data_give_the_same(small):
    first, second = (
        apply(Wanda(ratio=0.5, allocation="sensitivity"), model, small.context(model))[0].module
        for model in (small.transformer("gpt2", blocks=2) for _ in "ab")
    )
    before = small.transformer("gpt2", blocks=2).module
    for a, b, old in zip(first.parameters(), second.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[a != 0], old[a != 0])


@pytest.mark.parametrize("technique", [Wanda, SparseGpt])
def test_sensitivity_loses_less_on_a_trained_model_than_one_ratio(technique):
    source = open_source("zoo:digits-dwcnn", task=None, arch=None, metric="", files={}, seed=0, allow_code=False)
    layers = source.layers(Workload())
    context = Context(source.data, source.task, Workload(), layers, source.inputs)
    split = source.data.search
    batch = {name: torch.from_numpy(array) for name, array in split.inputs.items()}
    found = {}
    for allocation in ("uniform", "sensitivity"):
        model, _ = apply(
            technique(ratio=0.6, allocation=allocation), source.model.clone(), dataclasses.replace(context)
        )
        with torch.no_grad():
            logits = model.forward(batch)
        found[allocation] = F.cross_entropy(logits, torch.from_numpy(split.labels), reduction="none")
    gain = found["uniform"] - found["sensitivity"]
    assert float(gain.mean() - 1.96 * gain.std() / len(gain) ** 0.5) > 0

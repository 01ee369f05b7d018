"""Zeros shared out among the parts of a model: the arithmetic, and what it gains on trained models."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from backends.context import Context
from backends.prune.allocation import by_losses, by_outliers, reach
from backends.prune.by_inputs import apply
from backends.sources import open_source
from knowledge.techniques.prune_once import SparseGpt, Wanda
from knowledge.values import Workload

WEIGHTS = np.array([4.0, 1.0, 2.0, 3.0])


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("bound", [0.02, 0.08, 0.5])
def test_ratios_keep_the_total_and_the_bound(ratio, bound):
    rng = np.random.default_rng(0)
    low = rng.uniform(0.01, 1, 4)
    for found in (
        by_outliers(rng.uniform(0, 0.1, 4), WEIGHTS, ratio, bound),
        by_losses(low, low * rng.uniform(1.1, 5, 4), WEIGHTS, ratio, bound),
    ):
        assert np.average(found, weights=WEIGHTS) == pytest.approx(ratio, abs=1e-9)
        assert np.abs(found - ratio).max() <= reach(ratio, bound) + 1e-9
        assert (found > 0).all()
        assert (found < 1).all()


def test_parts_that_are_alike_share_alike():
    same = np.full(4, 0.3)
    assert by_outliers(same, WEIGHTS, 0.6, 0.08) == pytest.approx(np.full(4, 0.6))
    assert by_losses(same, 2 * same, np.ones(4), 0.6, 0.08) == pytest.approx(np.full(4, 0.6))
    assert by_losses(0 * same, 0 * same, np.ones(4), 0.6, 0.08) == pytest.approx(np.full(4, 0.6))


def test_losses_are_least_at_the_total():
    low, high = np.array([0.1, 0.2, 0.05, 0.4]), np.array([0.4, 0.5, 0.3, 0.9])
    found = by_losses(low, high, WEIGHTS, 0.6, 0.2)

    def total(ratios):
        return float((low * (high / low) ** ((ratios - 0.4) / 0.4)).sum())

    rng = np.random.default_rng(0)
    for _ in range(300):
        step = rng.normal(0, 0.02, 4)
        step -= np.average(step, weights=WEIGHTS)
        assert (
            total(found) <= total(np.clip(found + step, 0.4, 0.8)) + 1e-9
            or abs(np.average(np.clip(found + step, 0.4, 0.8), weights=WEIGHTS) - 0.6) > 1e-9
        )


@pytest.mark.parametrize("kind", ["llama", "mixtral", "bert"])
@pytest.mark.parametrize("technique", [Wanda, SparseGpt])
@pytest.mark.parametrize("allocation", ["outliers", "sensitivity"])
def test_blocks_get_ratios_of_their_own_under_the_exact_total(kind, technique, allocation, small):
    model = small.transformer(kind, blocks=3)
    context = small.context(model)
    asked = technique(ratio=0.57, allocation=allocation, bound=0.1)
    _, decision = apply(asked, model, context)
    after = asked.effect(context.layers, decision)
    where = np.isin(after.path, list(decision.density))
    weights, lost = after.weights[where], (1 - after.density[where]) * after.weights[where]
    matrices = float(after.copies[where].sum())
    assert lost.sum() == pytest.approx(0.57 * weights.sum(), abs=matrices)  # one weight each
    by_block = {b: set(np.round(lost / weights, 2)[after.block[where] == b]) for b in range(3)}
    assert all(max(ratios) - min(ratios) <= 0.011 for ratios in by_block.values())
    assert len({min(ratios) for ratios in by_block.values()}) > 1
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
@torch.no_grad()
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
        found[allocation] = F.cross_entropy(model.forward(batch), torch.from_numpy(split.labels), reduction="none")
    gain = found["uniform"] - found["sensitivity"]
    assert float(gain.mean() - 1.96 * gain.std() / len(gain) ** 0.5) > 0

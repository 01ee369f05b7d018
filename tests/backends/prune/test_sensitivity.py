"""What each layer costs at several ratios: measured once, kept, and enough for any total or budget of loss."""

import dataclasses

import numpy as np
import pytest
import torch

from backends.data import Data
from backends.oneshot.resumed import Resumed
from backends.prune.allocation import LEVELS
from backends.prune.by_inputs import apply
from backends.prune.judge import WHOLE, Judge, judged_batches, read_batches
from backends.prune.sensitivity import layer_curves
from backends.runner import Pipeline
from backends.store import Store
from knowledge.techniques.prune_once import SparseGpt, Wanda
from knowledge.values import InputError, RunFailed, Workload


def stored_in(small, model, folder, key="first"):
    return small.context(model, store=Store(folder), key=key)


def paths_of(technique, context):
    return context.layers.path[technique.touches(context.layers)].tolist()


def zeros(decision, layers):
    weights = np.array([layers.weights[layers.index(path)] for path in decision.density])
    return float(np.average(1 - np.array(list(decision.density.values())), weights=weights))


@pytest.mark.parametrize("kind", ["llama", "mixtral", "bert", "cnn"])
@pytest.mark.parametrize("technique", [Wanda, SparseGpt])
def test_other_totals_and_budgets_measure_nothing_again(kind, technique, small, tmp_path):
    model = small.cnn() if kind == "cnn" else small.transformer(kind, blocks=2)
    context = stored_in(small, model, tmp_path)
    paths = paths_of(technique(), context)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    first = layer_curves(technique(), model, context, paths, {})
    assert first.runs == len(paths) * len(LEVELS)
    assert sum(losses[-1] > losses[0] for losses in first.losses.values()) > len(paths) / 2  # a pooler has no say
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    for params in ({"ratio": 0.3}, {"ratio": 0.7, "allocation": "sensitivity", "bound": 0.2}, {"max_loss": 0.1}):
        again = layer_curves(technique(**params), model, context, paths, {})
        assert (again.runs, again.losses) == (0, first.losses)


def test_another_model_method_or_data_are_measured_anew(small, tmp_path):
    model = small.transformer("llama", blocks=2)
    context = stored_in(small, model, tmp_path)
    paths = paths_of(Wanda(), context)
    assert layer_curves(Wanda(), model, context, paths, {}).runs > 0
    assert layer_curves(SparseGpt(), model, context, paths, {}).runs > 0
    assert layer_curves(SparseGpt(damping=0.1), model, context, paths, {}).runs > 0
    assert layer_curves(Wanda(), model, dataclasses.replace(context, key="second"), paths, {}).runs > 0
    other = small.split(model, seed=1)
    changed = dataclasses.replace(context, data=Data(other, other, other, other))
    assert layer_curves(Wanda(), model, changed, paths, {}).runs > 0
    assert layer_curves(Wanda(), model, context, paths, {}).runs == 0


def test_what_is_kept_prunes_as_what_was_measured_now(small, tmp_path):
    found = []
    for store in (tmp_path, tmp_path, None):
        model = small.transformer("gpt2", blocks=2)
        context = small.context(model) if store is None else stored_in(small, model, store)
        found.append(apply(SparseGpt(ratio=0.6, allocation="sensitivity"), model, context)[0].module.state_dict())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])
        assert torch.equal(value, found[2][name])


def test_stages_of_one_pipeline_measure_once(tmp_path):
    pipeline = Pipeline.open("zoo:digits-dwcnn", workload=Workload(threads=1), seed=0, store=Store(tmp_path))
    kept = []
    for params in ({"ratio": 0.4}, {"ratio": 0.6}, {"max_loss": 0.05}):
        record = next(pipeline.run([Wanda(allocation="sensitivity", **params)]))
        assert record.technique == "wanda"
        kept.append([path.parent.name for path in tmp_path.glob("*/record.json") if "losses" in path.read_text()[:20]])
    assert len(kept[0]) == 1
    assert kept[1:] == kept[:1] * 2


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "mixtral"])
def test_a_model_from_one_of_its_blocks_on_gives_the_same(kind, small):
    model = small.transformer(kind, blocks=3)
    batches = judged_batches(model, small.context(model))
    blocks = list(next(m for m in model.module.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3))
    resumed = Resumed(model, batches, blocks)
    with torch.no_grad():
        wanted = model.forward(batches[0])
        for number in (0, 2, 3):
            resumed.advance(number)
            assert torch.equal(resumed.outputs(0), wanted)
        assert torch.equal(model.forward(batches[0]), wanted)
    assert not any("forward" in vars(block) for block in blocks)


def test_layers_are_judged_on_samples_that_were_not_read(small):
    model = small.transformer("bert")
    long = small.split(model, count=600)
    context = small.context(model, long)
    read = torch.cat([batch["input_ids"] for batch in read_batches(model, context)])
    judged = torch.cat([batch["input_ids"] for batch in judged_batches(model, context)])
    held = np.cumsum(long.inputs["attention_mask"].sum(1))
    assert held[len(read) - 2] < 4096 <= held[len(read) - 1]
    assert torch.equal(judged, torch.from_numpy(long.inputs["input_ids"][::-1][: len(judged)].copy()))
    assert len(read) + len(judged) < len(long)


@pytest.mark.parametrize("allocation", ["uniform", "outliers", "sensitivity"])
def test_a_budget_of_loss_sets_the_zeros(allocation, small, tmp_path):
    shares = []
    for budget in (0.003, 0.03, 0.3):
        model = small.transformer("llama", blocks=2)
        context = stored_in(small, model, tmp_path)
        judge = Judge(model, context, WHOLE)
        _, decision = apply(Wanda(max_loss=budget, allocation=allocation), model, context)
        shares.append(zeros(decision, context.layers))
        assert 0.6 * budget <= judge.loss() <= budget
    assert shares == sorted(set(shares))


def test_a_budget_is_spent_better_by_sensitivity(small, tmp_path):
    shares = {}
    for allocation in ("uniform", "sensitivity"):
        model = small.transformer("llama", blocks=2)
        _, decision = apply(
            Wanda(max_loss=0.03, allocation=allocation), model, context := stored_in(small, model, tmp_path)
        )
        shares[allocation] = zeros(decision, context.layers)
    assert shares["sensitivity"] > shares["uniform"]


def test_budgets_out_of_reach_are_told(small):
    model = small.transformer("bert", blocks=2)
    with pytest.raises(RunFailed, match=r"^wanda: no row is so long that a weight of it can go for a loss of 1e-12$"):
        apply(Wanda(max_loss=1e-12), model, small.context(model))
    wide = small.transformer("llama", hidden=128, blocks=2)
    with pytest.raises(RunFailed, match=r"^wanda: 1% of the weights lose .* already, of 1e-12 that may be lost$"):
        apply(Wanda(max_loss=1e-12), wide, small.context(wide))
    fresh = small.transformer("llama", hidden=128, blocks=2).module.state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in wide.module.state_dict().items())
    _, decision = apply(Wanda(max_loss=50.0), model, small.context(model))
    assert [r.rule for r in decision.skipped if "loss" in r.rule] == ["prune-loss-unused"]


def test_activations_that_are_not_finite_are_named(small):
    model = small.transformer("llama", blocks=2)
    with torch.no_grad():
        model.module.model.layers[1].input_layernorm.weight[0] = float("nan")
    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn\.q_proj: reads NaN or infinity"):
        apply(Wanda(allocation="sensitivity"), model, small.context(model))

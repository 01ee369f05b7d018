"""Wanda and SparseGPT as executors, on every kind of transformer."""

import dataclasses

import numpy as np
import pytest
import torch

from backends.locate import weight_tensors
from backends.profile import profile
from backends.prune.by_inputs import apply
from backends.prune.magnitude import apply as by_size
from backends.quantize.grid import dequantize, encode
from knowledge.techniques.prune import Magnitude
from knowledge.techniques.prune_once import SparseGpt, Wanda
from knowledge.values import InputError

KINDS = ("llama", "gpt2", "mixtral", "bert")


def pruned(small, kind, technique, change=lambda context: context):
    model = small.transformer(kind, blocks=2)
    return apply(technique, model, change(small.context(model)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("technique", [Wanda(ratio=0.25), SparseGpt(ratio=0.25), Wanda(pattern="2:4")])
def test_the_decision_holds_what_is_really_zero(kind, technique, small):
    before = {name: p.detach().clone() for name, p in small.transformer(kind, blocks=2).module.named_parameters()}
    model, decision = pruned(small, kind, technique)
    asked = 0.5 if technique.pattern == "2:4" else 0.25
    touched = {name for path in decision.density for name in weight_tensors(model.module, path)}
    for path, share in decision.density.items():
        weights = weight_tensors(model.module, path).values()
        assert share == sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        assert share == pytest.approx(1 - asked, abs=0.02), path
    for name, p in model.module.named_parameters():
        assert torch.equal(p, before[name]) != (name in touched), name
    assert model.structure[-1].technique == technique.id


def test_layers_lose_their_own_ratios(small):
    technique = Wanda(ratio=0.25, layer_ratios={"layers.0": 0.5, "layers.*.mlp": 0.75})
    _, decision = pruned(small, "llama", technique)
    for path, share in decision.density.items():
        wanted = 0.5 if "layers.0." in path else 0.75 if ".mlp." in path else 0.25
        assert share == pytest.approx(1 - wanted, abs=0.02), path


def test_patterns_leave_two_of_four_in_every_row(small):
    model, decision = pruned(small, "gpt2", SparseGpt(pattern="2:4"))
    for path in decision.density:
        weight = model.module.get_submodule(path).weight.t()  # Conv1D holds [in, out]
        assert bool((weight.unflatten(1, (-1, 4)) != 0).sum(-1).le(2).all()), path


@pytest.mark.parametrize("technique", [Wanda(), SparseGpt()])
def test_what_stands_in_padding_does_not_count(small, technique):
    def padded(token):
        def change(context):
            split = context.data.calibration
            mask = split.inputs["attention_mask"].copy()
            mask[:, -3:] = 0
            ids = split.inputs["input_ids"].copy()
            ids[:, -3:] = token
            inputs = {**split.inputs, "attention_mask": mask, "input_ids": ids}
            data = dataclasses.replace(context.data, calibration=dataclasses.replace(split, inputs=inputs))
            return dataclasses.replace(context, data=data)

        return change

    first, second = (pruned(small, "bert", technique, padded(token))[0].module for token in (1, 7))
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_too_few_tokens_are_refused_for_a_hessian_and_enough_for_norms(small):
    def short(context):
        data = dataclasses.replace(context.data, calibration=context.data.calibration.head(1))
        return dataclasses.replace(context, data=data)

    with pytest.raises(InputError, match="tokens are too few for the Hessian of"):
        pruned(small, "llama", SparseGpt(), short)
    assert pruned(small, "llama", Wanda(), short)[1].density


def test_the_same_seed_gives_the_same_weights(small):
    first, second = (pruned(small, "llama", SparseGpt())[0].module for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_what_the_data_did_not_tell_is_said(small):
    def short(context):
        data = dataclasses.replace(context.data, calibration=context.data.calibration.head(6))
        return dataclasses.replace(context, data=data)

    _, decision = pruned(small, "mixtral", SparseGpt(damping=1e-9), short)
    rules = {refusal.rule for refusal in decision.skipped}
    assert "calibration-thin" in rules  # 64 tokens, shared among four experts
    assert all(refusal.observed.split(":")[0] in decision.density for refusal in decision.skipped)
    assert not pruned(small, "llama", SparseGpt())[1].skipped


def test_an_expert_that_no_token_reached_is_named(small):
    model = small.transformer("mixtral", blocks=2)
    model.module.model.layers[0].mlp.gate.weight.data.zero_()  # all experts are alike then, and the first two are taken
    _, decision = apply(Wanda(), model, small.context(model))
    unread = [refusal.observed for refusal in decision.skipped if refusal.rule == "calibration-unread"]
    assert any("layers.0.mlp.experts" in text and "2 of 4 matrices" in text for text in unread)


@pytest.mark.parametrize("technique", [Wanda(), SparseGpt(), Wanda(pattern="1:4"), SparseGpt(pattern="3:4")])
def test_convolutions_lose_their_share_and_those_in_groups_are_named(technique, small):
    model = small.cnn()
    _, decision = apply(technique, model, small.context(model))
    kept = {"unstructured": 0.5, "1:4": 0.25, "3:4": 0.75}[technique.pattern]
    stem = {"stem.0"} if technique.pattern == "unstructured" else set()  # one channel makes no group
    assert set(decision.density) == {"residual.conv1", "residual.conv2", "pointwise"} | stem
    assert decision.pattern == technique.pattern
    for path, share in decision.density.items():
        weight = model.module.get_submodule(path).weight
        assert share == pytest.approx(kept, abs=0.06), path  # four of the stem's nine
        if technique.pattern != "unstructured":
            groups = (weight.unflatten(1, (-1, 4)) != 0).sum(2)
            assert bool((groups <= technique.kept()[0]).all()), path
    skipped = [refusal for refusal in decision.skipped if refusal.rule == "prune-convolution-whole"]
    assert [r.observed.split(":")[0] for r in skipped] == ["depthwise"]
    assert "16 groups" in skipped[0].observed


def test_a_convolution_along_other_axes_is_named_and_stays_whole(small):
    model = small.cnn()
    other = torch.nn.ConvTranspose2d(32, 32, 1)
    model.module.pool = torch.nn.Sequential(other, model.module.pool)
    before = other.weight.clone()
    _, decision = apply(Wanda(), model, small.context(model))
    assert torch.equal(other.weight, before)
    assert any(r.observed.startswith("pool.0: a transposed convolution") for r in decision.skipped)


def test_sparsegpt_disturbs_a_convolution_less_than_cutting_the_smallest(small):
    model, given = small.cnn(), small.split(small.cnn())
    wanted = small.outputs(model, given)
    errors = {}
    for technique, prune in ((SparseGpt(), apply), (Wanda(), apply), (Magnitude(scope="local"), by_size)):
        changed, _ = prune(technique, small.cnn(), small.context(model))
        errors[technique.id] = float((small.outputs(changed, given) - wanted).square().mean())
    assert errors["sparsegpt"] < errors["wanda"]
    assert errors["sparsegpt"] < errors["magnitude"]


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_what_is_pruned_and_rounded_in_one_pass_lies_on_grids(pattern, small):
    model = small.transformer("llama", blocks=2)
    context = small.context(model)
    technique = SparseGpt(pattern=pattern, bits=4, group_size=16, accuracy_level=0)
    after, decision = apply(technique, model, context)
    layers = technique.effect(context.layers, decision)
    assert set(decision.formats) == set(decision.density)
    assert set(layers.bits[np.isin(layers.path, list(decision.formats))]) == {4}
    assert all(share <= 0.5 + 1e-3 for share in decision.density.values())
    assert profile(after, context.workload).stored_bytes == layers.stored_bytes
    assert technique.effect(context.layers).stored_bytes == layers.stored_bytes
    for name, grid in after.grids.items():
        matrix = after.module.get_parameter(name)
        codes = encode(matrix, grid.scales, grid.zeros, grid.bits, grid.group_size)
        torch.testing.assert_close(dequantize(codes, grid.scales, grid.zeros, grid.group_size), matrix)


def test_convolutions_and_narrow_layers_stay_in_float_where_others_are_rounded(small):
    model = small.cnn()
    _, decision = apply(SparseGpt(bits=4, group_size=16), model, small.context(model))
    assert not decision.formats
    model = small.transformer("llama", blocks=2)
    _, decision = apply(SparseGpt(bits=4, group_size=64), model, small.context(model))
    assert {path.rpartition(".")[2] for path in decision.formats} == {"down_proj"}

import numpy as np
import pytest
import torch
from torch import nn

from backends.models import LoadedModel
from backends.reshape.channels import apply, least, narrow, norm_scores, per_channel, recalibrate, taylor_scores
from backends.structure import rebuild
from knowledge.layers import ModelInfo
from knowledge.techniques.reshape import Channels


def test_scores_per_channel_agree_with_loops():
    scores = torch.rand(3, 4, 2, 2)
    for axis, count in ((0, 3), (1, 4)):
        sums = [float(scores.select(axis, i).sum()) for i in range(count)]
        expected = torch.tensor(sums) / (sum(sums) / count)
        torch.testing.assert_close(per_channel(scores, axis), expected)


def test_the_least_important_go_and_ties_go_from_the_end():
    assert least(torch.tensor([1.0, 3.0, 2.0, 0.5]), 2) == [0, 3]
    assert least(torch.ones(5), 3) == [3, 4]
    assert least(torch.ones(3), 3) == []


@pytest.mark.parametrize("importance", ["l2", "l1", "taylor"])
@pytest.mark.parametrize(("ratio", "round_to"), [(0.5, 4), (0.3, 1), (0.9, 8)])
def test_widths_are_what_the_technique_predicts(importance, ratio, round_to, small):
    model = small.cnn()
    context = small.context(model)
    technique = Channels(ratio=ratio, importance=importance, round_to=round_to)
    expected = technique.effect(context.layers)
    pruned, decision = apply(technique, model, context)
    real = small.context(pruned).layers
    assert real.outputs.tolist() == expected.outputs.tolist()
    assert real.inputs.tolist() == expected.inputs.tolist()
    assert real.groups.tolist() == expected.groups.tolist()
    exact = technique.effect(context.layers, decision)
    assert (exact.parameters, exact.macs) == (real.parameters, real.macs)
    assert decision.skipped == ()
    assert small.outputs(pruned, context.data.search).shape == (40, 4)


def test_classes_and_image_channels_stay(small):
    model = small.cnn()
    pruned, decision = apply(Channels(ratio=0.7), model, small.context(model))
    assert decision.shapes["fc"].outputs == 4
    assert decision.shapes["stem.0"].inputs == 1
    assert isinstance(pruned.module.stem[0], nn.Conv2d)


def test_removing_silent_channels_changes_nothing(small):
    """Channels whose every weight is zero are the least important, and the rest computes the same without them."""
    model = small.cnn()
    context = small.context(model)
    silent = {"stem.0": "stem.1", "residual.conv1": "residual.norm1", "pointwise": "norm"}
    with torch.no_grad():
        for conv, norm in silent.items():
            weight, scale = model.module.get_submodule(conv), model.module.get_submodule(norm)
            half = torch.arange(1, weight.out_channels, 2)
            for tensor in (weight.weight, scale.weight, scale.bias):
                tensor[half] = 0
            if weight.bias is not None:
                weight.bias[half] = 0
        odd = torch.arange(1, 16, 2)
        second = model.module.residual
        for tensor in (second.conv2.weight, second.norm2.weight, second.norm2.bias, model.module.depthwise.weight):
            tensor[odd] = 0
    before = small.outputs(model, context.data.search)
    narrow(model, context.layers, lambda _, width: width // 2, norm_scores(model.module, 2), "channels")
    assert model.module.stem[0].out_channels == 8
    assert model.module.fc.in_features == 16 * 4
    torch.testing.assert_close(small.outputs(model, context.data.search), before, atol=1e-5, rtol=1e-5)


def test_taylor_scores_agree_with_one_backward_per_batch(small):
    model = small.cnn()
    context = small.context(model)
    scores = taylor_scores(model, context.task, context.data.calibration)
    batch = {k: torch.from_numpy(v) for k, v in context.data.calibration.inputs.items()}
    loss = context.task.loss(model.forward(batch), {"labels": torch.from_numpy(context.data.calibration.labels)})
    loss.backward()
    weight = model.module.pointwise.weight
    torch.testing.assert_close(scores[id(weight)], (weight * weight.grad).abs().detach())


def test_taylor_needs_no_labels(small):
    model = small.cnn()
    split = small.split(model)
    unlabeled = type(split)(split.inputs)
    _, decision = apply(Channels(importance="taylor"), model, small.context(model, unlabeled))
    assert decision.shapes


def test_statistics_are_those_of_the_calibration_data(small):
    model = small.cnn()
    split = small.split(model, 48)
    recalibrate(model, split)
    with torch.no_grad():
        seen = model.module.stem[0](torch.from_numpy(split.inputs["pixels"]))
    torch.testing.assert_close(model.module.stem[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    assert model.module.stem[1].momentum == 0.1
    assert not model.module.stem[1].training


class Grouped(nn.Module):
    """A convolution in two groups, one behind a GroupNorm, and one whose channels are the classes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.pairs = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.second = nn.Conv2d(8, 12, 3, padding=1)
        self.norm = nn.GroupNorm(2, 12)
        self.third = nn.Conv2d(12, 16, 3, padding=1)
        self.classes = nn.Conv2d(16, 4, 1)

    def forward(self, pixels):
        x = self.second(torch.relu(self.pairs(self.first(pixels))))
        return self.classes(torch.relu(self.third(self.norm(x)))).mean((2, 3))


def test_groups_that_cannot_change_are_refused_by_name(small):
    info = ModelInfo("g", "cnn", "image-classification", classes=4, image_size=(1, 8, 8))
    model = LoadedModel(Grouped().eval(), info, small.cnn().inputs, "tensor", "tests:grouped")
    context = small.context(model)
    pruned, decision = apply(Channels(), model, context)
    assert pruned.module.third.out_channels == 8
    assert (pruned.module.pairs.groups, pruned.module.second.out_channels, pruned.module.classes.out_channels) == (
        2,
        12,
        4,
    )
    reasons = " | ".join(r.observed for r in decision.skipped)
    assert "2 groups" in reasons
    assert "GroupNorm" in reasons
    assert "output" in reasons
    assert small.outputs(pruned, context.data.search).shape == (40, 4)


def test_the_same_seed_cuts_the_same_channels(small):
    results = []
    for _ in range(2):
        model = small.cnn()
        pruned, _ = apply(Channels(importance="taylor"), model, small.context(model))
        results.append(small.outputs(pruned, small.split(model)).numpy())
    np.testing.assert_array_equal(*results)


def test_the_structure_comes_back_without_data(small):
    model = small.cnn()
    pruned, decision = apply(Channels(ratio=0.4), model, small.context(model))
    again = rebuild(small.cnn(), [decision])
    again.module.load_state_dict(pruned.module.state_dict())
    split = small.split(pruned)
    assert torch.equal(small.outputs(again, split), small.outputs(pruned, split))

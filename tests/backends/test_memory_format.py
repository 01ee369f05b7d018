"""Layouts of convolutions' weights while a network is trained: faster, and no other network afterwards."""

import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from backends.memory_format import _weights, channels_last
from backends.structure import distinct
from backends.tasks import task_for
from backends.training import _fused, tensors, train
from knowledge.values import RunFailed


class Images(nn.Module):
    """Two convolutions and what a subclass does with what they give: [batch, 6, 8, 8] → [batch, 4]."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 64, 4)

    def convolved(self, pixels):
        return self.second(self.first(pixels).relu())

    def forward(self, pixels):
        return self.fc(self.convolved(pixels).flatten(1))


class Viewing(Images):
    """Counts on the usual order of what convolutions give, and draws random numbers."""

    def forward(self, pixels):
        return self.fc(self.convolved(pixels).view(len(pixels), -1)) + 0 * torch.rand(1)


class Asserting(Images):
    """Its author checks what the code counts on."""

    def forward(self, pixels):
        found = self.convolved(pixels)
        assert found.is_contiguous(), "unusual order"
        return self.fc(found.flatten(1))


class Volumes(Images):
    """A stem of another rank, and a buffer of five dimensions that two modules share."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(1, 1, (1, 3, 3), padding=(0, 1, 1))
        self.register_buffer("scale", torch.ones(1, 1, 1, 8, 8))
        self.fc.register_buffer("scale", self.scale)

    def forward(self, pixels):
        return super().forward((self.stem(pixels.unsqueeze(2)) * self.scale).squeeze(2))


class Masked(Images):
    """One buffer of four dimensions that two modules share."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(1, 1, 8, 8))
        self.second.register_buffer("mask", self.mask)

    def forward(self, pixels):
        return super().forward(pixels * self.mask)


class Placed(Images):
    """Has its own idea of `to`."""

    def to(self, device):
        return self


class Laid(Images):
    """Comes with channels last, and counts on it."""

    def __init__(self):
        super().__init__()
        self.second.weight.data = self.second.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, pixels):
        self.second.weight.permute(0, 2, 3, 1).view(-1)
        return super().forward(pixels)


class Widened(Images):
    """One channel's weights stand for all."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.first.weight = nn.Parameter(self.first.weight.detach()[:, :1].expand(-1, 3, -1, -1))

    def forward(self, pixels):
        return super().forward(pixels.expand(-1, 3, -1, -1))


NETWORKS = [(Images, True), (Viewing, False), (Asserting, False), (Volumes, True), (Masked, True), (Placed, True)]
NETWORKS += [(Laid, True)]


@pytest.fixture(params=[*NETWORKS, (None, True)], ids=lambda p: p[0].__name__ if p[0] else "with statistics")
def model(request, small):
    """The model, and whether its code bears channels last."""
    made, bears = request.param
    torch.manual_seed(0)
    cnn = small.cnn()
    return (dataclasses.replace(cnn, module=made()) if made else cnn), bears


def layouts(model):
    return {name: value.stride() for name, value in model.module.state_dict().items()}


def test_weights_lie_with_channels_last_where_the_code_allows_it(model, small):
    model, bears = model
    split, lying = small.split(model), layouts(model)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    random = torch.get_rng_state()
    with channels_last(model, tensors(split, np.arange(2), torch.device("cpu"))):
        convolutions = [part for part in model.module.modules() if isinstance(part, nn.Conv2d)]
        wide = [c.weight for c in convolutions if c.weight.shape[1] > 1]  # others lie the same both ways
        assert {w.is_contiguous(memory_format=torch.channels_last) for w in wide} == {bears}
    assert torch.equal(torch.get_rng_state(), random)
    assert layouts(model) == lying
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])  # running statistics too


def test_any_network_is_trained(model, small):
    model, _ = model
    split, lying, task = small.split(model), layouts(model), task_for(model.info.task)
    stored = set(distinct(model.module))
    curve = train(model, task, split, epochs=4, learning_rate=5e-3)
    assert curve[-1].loss < curve[0].loss
    assert layouts(model) == lying
    assert set(distinct(model.module)) == stored  # what modules share is still shared
    with pytest.raises(RunFailed, match="diverged"):
        train(model, task, split, epochs=4, learning_rate=1e30)
    assert layouts(model) == lying


def test_modes_stay_as_they_are(small):
    model = small.cnn()
    parts = list(model.module.modules())
    for number, part in enumerate(parts):
        part.training = number % 2 == 0
    with channels_last(model, tensors(small.split(model), np.arange(2), torch.device("cpu"))):
        pass
    assert [part.training for part in parts] == [number % 2 == 0 for number in range(len(parts))]


def test_a_weight_made_from_others_is_left_alone(small):
    module = Images()
    nn.utils.parametrizations.weight_norm(module.second)
    model = dataclasses.replace(small.cnn(), module=module)
    split = small.split(model)
    assert [id(weight) for weight in _weights(model)] == [id(module.first.weight)]
    curve = train(model, task_for(model.info.task), split, epochs=4, learning_rate=5e-3)
    assert curve[-1].loss < curve[0].loss


def test_weights_that_share_memory_within_themselves_are_left_alone(small):
    model = dataclasses.replace(small.cnn(), module=Widened())
    assert [id(weight) for weight in _weights(model)] == [id(model.module.second.weight)]
    with channels_last(model, tensors(small.split(model), np.arange(2), torch.device("cpu"))):
        assert 0 in model.module.first.weight.stride()
    assert 0 in model.module.first.weight.stride()


def test_how_weights_lie_changes_training_by_no_more_than_rounding(small, monkeypatch):
    models = [small.cnn() for _ in range(3)]
    split = small.split(models[0])
    for model in models[1:]:
        train(model, task_for(model.info.task), split, epochs=2, learning_rate=1e-3)
        monkeypatch.setattr("backends.training.channels_last", lambda *given: nullcontext())
    untrained, laid_out, plain = (small.outputs(model, split) for model in models)
    assert (laid_out - plain).norm() < 0.01 * (plain - untrained).norm()


@pytest.mark.parametrize(
    ("weight", "fused"),
    [
        (torch.ones(4, 6), True),
        (torch.ones(6, 4).t(), True),
        (torch.ones(4, 6, dtype=torch.complex64), None),
        (torch.ones(4, 8)[:, :6], None),  # gaps between its rows
        (torch.ones(4, 1).expand(4, 6), None),
    ],
)
def test_steps_are_fused_where_weights_lie_without_gaps(weight, fused):
    module = nn.Linear(6, 4)
    module.weight = nn.Parameter(weight)
    assert _fused(module, torch.device("cpu")) is fused
    module.weight.requires_grad_(False)
    assert _fused(module, torch.device("cpu")) is True


def test_weights_with_gaps_are_trained_like_others(small):
    """Fused, the step would write over what lies between the rows."""
    split = small.split(small.cnn())
    outputs = []
    for gaps in (0, 3):
        torch.manual_seed(0)
        model = dataclasses.replace(small.cnn(), module=Images())
        fc = model.module.fc
        wide = torch.cat([fc.weight.detach(), torch.zeros(4, gaps)], dim=1)
        fc.weight.data = wide[:, : 6 * 64]
        train(model, task_for(model.info.task), split, epochs=2, learning_rate=1e-3)
        assert not wide[:, 6 * 64 :].any()
        outputs.append(small.outputs(model, split))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)

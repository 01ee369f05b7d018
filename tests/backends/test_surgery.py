import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from backends.locate import cut, located, resize_at, weight_tensors
from backends.surgery import (
    FactoredLinear,
    dense_weight,
    empty_factors,
    factored,
    is_norm,
    resize,
    select,
    select_hidden,
)
from knowledge.values import Shape

KEEP, READ = torch.tensor([0, 3, 4]), torch.tensor([1, 2, 5])


def loud(module):
    """A module whose parameters all differ from their start."""
    for p in module.parameters():
        nn.init.normal_(p)
    return module


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), Conv1D(5, 6)])
def test_a_dense_layer_keeps_the_chosen_outputs_and_inputs(layer):
    loud(layer)
    x = torch.zeros(2, 6)
    x[:, READ] = torch.randn(2, 3)
    expected = layer(x)[:, KEEP]
    select(layer, KEEP, READ)
    torch.testing.assert_close(layer(x[:, READ]), expected)
    assert dense_weight(layer).shape == (3, 3)


def test_a_convolution_keeps_the_chosen_channels():
    layer = loud(nn.Conv2d(6, 5, 3, padding=1))
    x = torch.zeros(2, 6, 4, 4)
    x[:, READ] = torch.randn(2, 3, 4, 4)
    expected = layer(x)[:, KEEP]
    select(layer, KEEP, READ)
    torch.testing.assert_close(layer(x[:, READ]), expected)


def test_a_depthwise_convolution_loses_groups():
    layer = loud(nn.Conv2d(6, 6, 3, padding=1, groups=6))
    x = torch.randn(2, 6, 4, 4)
    expected = layer(x)[:, READ]
    select(layer, READ, READ)
    torch.testing.assert_close(layer(x[:, READ]), expected)
    assert (layer.groups, layer.in_channels, layer.out_channels) == (3, 3, 3)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(6), nn.LayerNorm(6), nn.RMSNorm(6)])
def test_norms_follow(layer):
    loud(layer)
    select(layer, READ)
    shape = (2, 3, 4, 4) if isinstance(layer, nn.BatchNorm2d) else (2, 3)
    assert layer.eval()(torch.randn(shape)).shape == shape
    assert is_norm(layer)


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("both", [False, True])
def test_a_recurrent_layer_without_its_silent_units_computes_the_same(cls, both):
    layer = loud(cls(4, 6, 2, batch_first=True, bidirectional=both))
    silent = [i for i in range(6) if i not in READ.tolist()]
    with torch.no_grad():  # nobody reads the units that go
        for name, p in layer.named_parameters():
            if name.startswith("weight_hh"):
                p[:, silent] = 0
            if name.startswith("weight_ih_l1"):
                p[:, silent + [i + 6 for i in silent if both]] = 0
    x = torch.randn(3, 5, 4)
    seen = torch.cat([READ, READ + 6]) if both else READ
    expected = layer(x)[0][..., seen]
    select_hidden(layer, READ)
    torch.testing.assert_close(layer(x)[0], expected)
    assert layer.hidden_size == 3


def test_a_projection_cannot_be_cut():
    with pytest.raises(ValueError, match="projection"):
        select_hidden(nn.LSTM(4, 6, proj_size=2), READ)


def test_resizing_gives_the_shape_and_never_grows():
    conv, linear, lstm = nn.Conv2d(6, 8, 3), nn.Linear(6, 5), nn.LSTM(4, 6)
    resize(conv, Shape(outputs=4, inputs=2))
    resize(linear, Shape(outputs=2, inputs=3))
    resize(lstm, Shape(outputs=3, inputs=2))
    assert conv.weight.shape == (4, 2, 3, 3)
    assert linear(torch.randn(1, 3)).shape == (1, 2)
    assert lstm(torch.randn(5, 1, 2))[0].shape == (5, 1, 3)
    with pytest.raises(ValueError, match="cannot grow"):
        resize(linear, Shape(outputs=9, inputs=3))
    with pytest.raises(ValueError, match="groups"):
        resize(nn.Conv2d(8, 8, 3, groups=2), Shape(outputs=4, inputs=4))


def test_factors_take_over_bias_dtype_and_size():
    layer = loud(nn.Linear(6, 5).double())
    new = factored(layer, torch.randn(2, 6), torch.randn(5, 2))
    assert isinstance(new, FactoredLinear)
    assert new.up.weight.dtype == torch.float64
    assert torch.equal(new.up.bias, layer.bias)
    assert empty_factors(Conv1D(5, 6), 2)(torch.randn(1, 6)).shape == (1, 5)
    with pytest.raises(TypeError, match="no dense layer"):
        empty_factors(nn.Conv2d(2, 2, 1), 1)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.experts = nn.Parameter(torch.randn(3, 4, 6))
        self.experts_bias = nn.Parameter(torch.randn(3, 4))
        self.attention = nn.MultiheadAttention(6, 2)
        self.lstm = nn.LSTM(4, 6)
        self.embedding = nn.Embedding(9, 6)
        self.factors = FactoredLinear(6, 5, 2)


def test_paths_lead_to_weights_and_their_sides():
    parts = Parts()
    assert located(parts, "token").sizes == (6, 1)
    assert located(parts, "experts").sizes == (4, 6)
    assert located(parts, "attention.in_proj_weight").sizes == (18, 6)
    assert located(parts, "embedding").sizes == (9, 6)
    assert located(parts, "lstm.weight_hh_l0").sizes == (24, 6)
    assert set(weight_tensors(parts, "factors")) == {"factors.down.weight", "factors.up.weight"}
    assert set(weight_tensors(parts, "lstm.weight_hh_l0")) == {"lstm.weight_hh_l0"}
    for wrong in ("nowhere", "attention.nowhere", "lstm.hidden_size"):
        with pytest.raises(KeyError):
            located(parts, wrong)


def test_bare_parameters_are_cut_with_their_biases():
    parts = Parts()
    before = parts.experts.detach().clone()
    cut(parts, "experts", torch.tensor([0, 2]), READ)
    assert torch.equal(parts.experts, before[:, [0, 2]][:, :, READ])
    assert parts.experts_bias.shape == (3, 2)
    cut(parts, "attention.in_proj_weight", torch.arange(9), None)
    assert (parts.attention.in_proj_weight.shape, parts.attention.in_proj_bias.shape) == ((9, 6), (9,))
    cut(parts, "embedding", None, READ)
    assert parts.embedding(torch.tensor([0])).shape == (1, 3)
    resize_at(parts, "token", Shape(outputs=3, inputs=1))
    assert parts.token.shape == (1, 1, 3)
    with pytest.raises(ValueError, match="cannot grow"):
        resize_at(parts, "token", Shape(outputs=5, inputs=1))

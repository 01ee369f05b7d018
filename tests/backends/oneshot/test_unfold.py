"""Convolutions as matrices."""

import pytest
import torch
from torch import nn

from backends.oneshot.matrices import matrices
from backends.oneshot.unfold import as_matrix, unfolded, unfolds

IMAGE, SERIES = (2, 5, 9, 8), (2, 5, 9)
CONVOLUTIONS = {
    "plain": (nn.Conv2d(5, 7, 3, padding=1), IMAGE),
    "strided": (nn.Conv2d(5, 7, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), IMAGE),
    "reflected": (nn.Conv2d(5, 7, 3, padding="same", padding_mode="reflect"), IMAGE),
    "one axis": (nn.Conv1d(5, 7, 3, stride=2, padding=2), SERIES),
    "even": (nn.Conv1d(5, 7, 4, padding="same", padding_mode="circular"), SERIES),
    "one sample": (nn.Conv2d(5, 7, 3), IMAGE[1:]),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@torch.no_grad()
def test_a_convolution_is_its_matrix_times_unfolded_inputs(name):
    conv, shape = CONVOLUTIONS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    product = unfolded(conv, x) @ as_matrix(conv.weight).t() + conv.bias  # [batch, positions, out]
    torch.testing.assert_close(product.transpose(1, 2).reshape(conv(x).shape), conv(x))


def test_what_is_written_into_a_convolution_is_read_from_it():
    root = nn.Sequential(nn.Conv2d(3, 4, (2, 3)))
    (matrix,) = matrices(root, "0")
    given = torch.randn(4, 18)
    matrix.write(given)
    assert torch.equal(matrix.read(), given)
    assert torch.equal(root[0].weight[1, :, 1, 2], given[1, 15:])  # channels at one place of the kernel are neighbors


@pytest.mark.parametrize("conv", [nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 4, 3), nn.Conv3d(4, 4, 3)])
def test_what_does_not_unfold_into_one_matrix_has_none(conv):
    assert not unfolds(conv)
    with pytest.raises(KeyError):
        matrices(nn.Sequential(conv), "0")

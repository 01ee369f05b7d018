"""Grids, codes and byte layouts against references that go number by number."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.quantize import grid as grids
from backends.quantize.grid import NF4, dequantize, dequantize_nf4, encode, grid, pack, quantize, quantize_nf4

BITS = (8, 4, 3, 2)


def weights(out=5, columns=77, seed=0):
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(seed))


def spans(columns, size):
    size = columns if size is None or size <= 0 else size
    return [range(start, min(start + size, columns)) for start in range(0, columns, size)]


def rounded(x):
    return float(torch.round(torch.tensor(x)))  # halves to the even neighbor, as everywhere


def slow_quantize(weight, bits, size, symmetric):
    """One number after the other."""
    codes, scales, zeros = [], [], []
    for row in weight.tolist():
        codes.append([])
        scales.append([])
        zeros.append([])
        for span in spans(len(row), size):
            group = [row[i] for i in span]
            low, high = min(0.0, *group), max(0.0, *group)
            if symmetric:
                zero = 2 ** (bits - 1)
                scale = (high if high > -low else low) / -zero
            else:
                scale = (high - low) / (2**bits - 1)
                zero = min(max(rounded(-low / scale), 0), 2**bits - 1) if scale else 0
            scale = scale or 1.0
            scales[-1].append(scale)
            zeros[-1].append(int(zero))
            codes[-1] += [int(min(max(rounded(x / scale) + zero, 0), 2**bits - 1)) for x in group]
    return codes, scales, zeros


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [16, 32, 64, 128, 7, None, 0, -1])
@pytest.mark.parametrize("bits", BITS)
def test_codes_scales_and_zero_points_are_those_of_the_slow_way(bits, size, symmetric):
    weight = weights().double()
    weight[1, :32] = 0  # a group of zeros
    weight[2] = weight[2].abs()  # none below zero
    weight[3] = -weight[3].abs()
    codes, scales, zeros = quantize(weight, bits, size, symmetric)
    slow = slow_quantize(weight, bits, size, symmetric)
    torch.testing.assert_close(scales, torch.tensor(slow[1]), rtol=1e-6, atol=0)
    assert zeros.tolist() == slow[2]
    off = codes.int() - torch.tensor(slow[0])  # a scale in float32 turns a number that lies half-way
    assert off.abs().max() <= 1
    assert (off != 0).float().mean() < 0.01
    assert codes.dtype == zeros.dtype == torch.uint8
    back = dequantize(codes, scales, zeros, size)
    for row in range(5):
        for group, span in enumerate(spans(77, size)):
            for i in span:
                assert math.isclose(
                    back[row, i],
                    (int(codes[row, i]) - int(zeros[row, group])) * float(scales[row, group]),
                    rel_tol=1e-6,
                )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=40, max_size=40), min_size=1, max_size=3),
    st.sampled_from(BITS),
    st.booleans(),
)
def test_no_weight_is_further_off_than_a_step(rows, bits, symmetric):
    """Half a step, but where a zero point had to be rounded or the side opposite to the largest weight is cut off."""
    weight = torch.tensor(rows)
    codes, scales, zeros = quantize(weight, bits, 16, symmetric)
    off = (dequantize(codes, scales, zeros, 16) - weight).abs()
    assert (off <= grids.per_column(scales.abs(), 40, 16) * 1.001 + 1e-30).all()
    assert int(codes.max()) < 2**bits
    assert torch.isfinite(scales).all()
    assert (scales != 0).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_weights_on_the_grid_come_back_as_they_are(bits, symmetric):
    codes, scales, zeros = quantize(weights(), bits, 16, symmetric)
    once = dequantize(codes, scales, zeros, 16)
    assert torch.equal(encode(once, scales, zeros, bits, 16), codes)
    assert torch.equal(dequantize(encode(once, scales, zeros, bits, 16), scales, zeros, 16), once)


@pytest.mark.parametrize("symmetric", [False, True])
def test_one_group_of_columns_has_the_grid_that_the_whole_matrix_gives_it(symmetric):
    weight = weights(columns=64)
    _, scales, zeros = quantize(weight, 4, 16, symmetric)
    for group in range(4):
        scale, zero = grid(weight[:, 16 * group : 16 * group + 16], 4, symmetric)
        assert torch.equal(scale, scales[:, group])
        assert torch.equal(zero, zeros[:, group].float())


def test_the_symmetric_grid_loses_less_than_one_that_is_as_wide_on_both_sides():
    for bits, share in ((4, 0.9), (3, 0.85), (2, 0.7)):
        weight = weights(64, 256)
        codes, scales, zeros = quantize(weight, bits, 32, True)
        wide = weight.view(64, 8, 32).abs().amax(2) * 2 / (2**bits - 1)
        even = encode(weight, wide, zeros, bits, 32)
        error, other = (
            float((dequantize(c, s, zeros, 32) - weight).square().sum()) for c, s in ((codes, scales), (even, wide))
        )
        assert error < share * other


def test_groups_of_zeros_and_of_tiny_numbers_become_zeros():
    weight = torch.zeros(3, 32)
    weight[1] = 1e-41
    for symmetric in (False, True):
        codes, scales, zeros = quantize(weight, 4, 16, symmetric)
        assert torch.equal(dequantize(codes, scales, zeros, 16), torch.zeros(3, 32))
    assert torch.equal(dequantize_nf4(*quantize_nf4(weight, 16), 16), torch.zeros(3, 32))


def test_half_precision_is_widened_first():
    exact = quantize(weights().half().float(), 4, 16)
    for found, expected in zip(quantize(weights().half(), 4, 16), exact, strict=True):
        assert torch.equal(found, expected)


def test_weights_that_lie_transposed_in_memory():
    """As GPT-2's do."""
    turned = weights(77, 64).t()
    assert not turned.is_contiguous()
    for bits in (8, 4, 2):
        found, exact = quantize(turned, bits, 11), quantize(turned.contiguous(), bits, 11)
        assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))
        assert torch.equal(pack(found[0].t(), bits), pack(found[0].t().contiguous(), bits))
    found, exact = quantize_nf4(turned, 11), quantize_nf4(turned.contiguous(), 11)
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


def test_scales_of_another_group_size_are_refused():
    codes, scales, zeros = quantize(weights(), 4, 16)
    with pytest.raises(ValueError, match="5 groups of 32 for 77 columns"):
        dequantize(codes, scales, zeros, 32)


# -- NF4 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 64, None])
def test_nf4_takes_the_nearest_of_the_sixteen_values(size):
    weight = weights()
    codes, largest = quantize_nf4(weight, size)
    back = dequantize_nf4(codes, largest, size)
    for row in range(5):
        for group, span in enumerate(spans(77, size)):
            most = max(abs(float(weight[row, i])) for i in span)
            assert float(largest[row, group]) == most
            for i in span:
                nearest = min(range(16), key=lambda c: abs(NF4[c] * most - float(weight[row, i])))
                assert int(codes[row, i]) == nearest
                assert math.isclose(float(back[row, i]), NF4[nearest] * most, rel_tol=1e-6)


def test_nf4_values_are_those_of_the_authors_library():
    """The middle is 0, both ends are 1, and the positive half has one value more than the negative one has inside."""
    assert list(NF4) == sorted(NF4)
    assert (NF4[0], NF4[7], NF4[15]) == (-1, 0, 1)
    quantile = torch.distributions.Normal(0, 1).icdf
    offset = 0.5 * (1 / 32 + 1 / 30)  # create_normal_map of bitsandbytes: 0.9677083
    high = quantile(torch.linspace(1 - offset, 0.5, 9, dtype=torch.float64))[:-1]
    low = -quantile(torch.linspace(1 - offset, 0.5, 8, dtype=torch.float64))[:-1]
    expected = torch.cat([low, torch.zeros(1), high.flip(0)]) / high[0]
    torch.testing.assert_close(torch.tensor(NF4, dtype=torch.float64), expected, atol=1e-6, rtol=0)


# -- bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("count", [1, 3, 4, 8, 13])
def test_codes_lie_in_their_bytes_low_bits_first(bits, count):
    codes = torch.randint(0, 2**bits, (3, count), generator=torch.Generator().manual_seed(count))
    packed = pack(codes, bits)
    assert packed.shape == (3, math.ceil(count * bits / 8))
    for row in range(3):
        whole = int.from_bytes(bytes(packed[row].tolist()), "little")
        assert whole == sum(int(codes[row, i]) << (bits * i) for i in range(count))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_blocks_of_a_row_are_whole(bits):
    codes = torch.randint(0, 2**bits, (4, 77), generator=torch.Generator().manual_seed(0))
    packed = grids.pack_blocks(codes, bits, 32)
    assert packed.shape == (4, 3, 32 * bits // 8)
    for row in range(4):
        for block, span in enumerate(spans(77, 32)):
            whole = int.from_bytes(bytes(packed[row, block].tolist()), "little")
            assert whole == sum(int(codes[row, i]) << (bits * at) for at, i in enumerate(span))


def test_nf4_codes_lie_in_their_bytes_high_half_first():
    codes = torch.randint(0, 16, (4, 32), generator=torch.Generator().manual_seed(0))
    packed = grids.pack_high_first(codes).tolist()
    flat = codes.flatten().tolist()
    assert packed == [16 * flat[2 * i] + flat[2 * i + 1] for i in range(64)]


def test_three_bits_without_zero_points_lie_around_the_middle_of_four():
    codes, scales, zeros = quantize(weights(), 3, 16, True)
    moved = grids.centered(codes, 3, grids.container_bits(3))
    assert set(zeros.flatten().tolist()) == {4}
    assert torch.equal(dequantize(moved, scales, zeros + 4, 16), dequantize(codes, scales, zeros, 16))
    assert (int(moved.min()), int(moved.max())) == (4, 11)

"""Packed integers: the bits beside a slow reference, and what the library makes of them."""

import numpy as np
import pytest
import torch

from backends.quantize.grid import dequantize, quantize
from backends.quantize.pack_quantized import PACKED, SCALE, SHAPE, ZEROS, Scheme, common_scheme, packed, unpacked

FORMS = [  # bits, group size, symmetric, inputs
    (4, 32, False, 96),
    (4, 32, True, 96),
    (8, 0, False, 90),
    (8, 16, True, 48),
    (3, 32, True, 64),
    (3, 32, False, 64),
    (2, 64, False, 64),
    (4, 128, False, 40),
    (4, 64, False, 160),
]


def words_of(codes, bits):
    """Codes [rows, n] one bit after the other, 32 to a word; each loop as the definition has it."""
    rows, count = codes.shape
    words = np.zeros((rows, -(-count * bits // 32)), np.uint32)
    for row in range(rows):
        for column in range(count):
            for bit in range(bits):
                if int(codes[row, column]) >> bit & 1:
                    place = column * bits + bit
                    words[row, place // 32] |= np.uint32(1 << place % 32)
    return words.view(np.int32)


def made(bits, group_size, symmetric, inputs, outputs=19):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(bits))
    weight[0, :5] = 0
    weight[3] = 0
    codes, scales, zeros = quantize(weight, bits, group_size, symmetric)
    scheme = common_scheme(bits, group_size, symmetric, {inputs: weight.numel()}, 32)
    rounded = dequantize(codes, scales, zeros, group_size)
    return codes, scales, zeros, rounded, scheme, packed(rounded, scales, zeros, bits, group_size, scheme)


@pytest.mark.parametrize("form", FORMS)
def test_codes_and_zero_points_lie_bit_by_bit_where_the_format_has_them(form):
    bits, _, symmetric, inputs = form
    codes, scales, zeros, rounded, scheme, parts = made(*form)
    middle = 2 ** (scheme.bits - 1) - 2 ** (bits - 1) if symmetric else 0
    assert np.array_equal(parts[PACKED].numpy(), words_of(codes.numpy() + middle, scheme.bits))
    assert parts[SHAPE].tolist() == [19, inputs]
    each = inputs // parts[SCALE].shape[1]
    own = min(form[1], inputs) or inputs
    for group in range(parts[SCALE].shape[1]):
        assert torch.equal(parts[SCALE][:, group], scales[:, group * each // own])
    assert (ZEROS in parts) is not symmetric
    if not symmetric:
        held = zeros[:, [group * each // own for group in range(parts[SCALE].shape[1])]]
        assert np.array_equal(parts[ZEROS].numpy(), words_of(held.numpy().T, scheme.bits).T)
    found = unpacked(parts, scheme)
    assert torch.equal(found, rounded)
    assert not found[3].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_reads_and_writes_the_same(form, kind):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    from backends.quantize.pack_quantized import FORMAT, quantization_config

    *_, scheme, parts = made(*form)
    parts[SCALE] = parts[SCALE].to(kind)
    weight = unpacked(parts, scheme)
    described = QuantizationScheme.model_validate(quantization_config(scheme, [])["config_groups"]["group_0"])
    compressor = BaseCompressor.get_value_from_registry(FORMAT)
    assert torch.equal(compressor.decompress(parts, described)["weight"], weight)
    if kind == torch.float32:  # zero points as the library computes with them
        points = {} if scheme.symmetric else {ZEROS: library_points(parts[ZEROS], scheme, parts[SCALE].shape)}
        again = compressor.compress({"weight": weight, SCALE: parts[SCALE]} | points, described)
        assert all(torch.equal(again[name], one) for name, one in parts.items())
        assert again.keys() == parts.keys()


def library_points(words, scheme, shape):
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    return unpack_from_int32(words, scheme.bits, shape, packed_dim=0)


def test_parts_that_contradict_each_other_are_refused():
    *_, scheme, parts = made(4, 32, False, 96)
    with pytest.raises(ValueError, match=r"scales of shape \[19, 2\], \[19, 3\] belong"):
        unpacked(parts | {SCALE: parts[SCALE][:, :2]}, scheme)
    with pytest.raises(ValueError, match="fewer codes"):
        unpacked(parts | {PACKED: parts[PACKED][:, :3]}, scheme)


def test_one_scheme_is_found_for_layers_of_several_widths():
    assert common_scheme(4, 128, True, {4096: 10, 64: 10}, 16) == Scheme(bits=4, group_size=64, symmetric=True)
    rare = common_scheme(4, 128, True, {4096: 10**9, 4000: 10}, 16)  # 4000 would want groups of 32
    assert rare == Scheme(bits=4, group_size=128, symmetric=True)
    assert rare.holds(4096, 128)
    assert not rare.holds(4000, 128)

"""Arrays without their zeros: a bit for each number and the others' values; for 2:4, where two of every four lie.

    mask      uint8 [⌈n / 8⌉]    bit i of byte j: whether number 8j + i is stored
    index     uint8 [⌈n / 8⌉]    two groups of four to a byte, the first in the low half: two places, 2 bits each
    values    the stored numbers, in order

A number is a zero when all its bits are: −0.0 and every NaN are stored, and come back as they were. An index takes as
much as a mask, and puts two numbers of every group at places that are known without counting bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Form = Literal["dense", "mask", "2:4", "2:4 transposed"]  # transposed: groups run along the last axis but one

HEADER_BYTES = 128  # what a second entry takes in the header of a file
PADDING = 0.01  # of the packed bytes, that the index form may take for zeros which fill its groups up


def pack(array: Array) -> tuple[Form, dict[str, Array]]:
    """The smallest form of an array of integers (a view of any numbers), and its parts.

    2:4 comes before the mask where every group holds at most two numbers and hardly any holds fewer.

    >>> form, parts = pack(np.arange(4096) % 2)
    >>> form, sorted(parts), int(parts["index"][0]), len(parts["values"])
    ('2:4', ['index', 'values'], 221, 2048)
    """
    flat = array.reshape(-1)
    kept = flat != 0
    packed_bytes = -(-flat.size // 8) + int(np.count_nonzero(kept)) * array.itemsize
    if packed_bytes + HEADER_BYTES >= array.nbytes:
        return "dense", {"": array}
    in_pairs = -(-flat.size // 8) + flat.size // 2 * array.itemsize
    if flat.size % 4 == 0 and packed_bytes <= in_pairs <= (1 + PADDING) * packed_bytes:
        if (parts := _pairs(flat, kept)) is not None:
            return "2:4", parts
        if array.ndim > 1:
            turned = array.swapaxes(-1, -2).reshape(-1)
            if (parts := _pairs(turned, turned != 0)) is not None:
                return "2:4 transposed", parts
    return "mask", {"mask": np.packbits(kept, bitorder="little"), "values": flat[kept]}


def parts_of(form: Form) -> tuple[str, ...]:
    """Names of a form's parts; empty for the array as it is."""
    return ("",) if form == "dense" else ("mask" if form == "mask" else "index", "values")


def unpack(form: Form, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """The array that was packed; raises ValueError where the parts contradict each other or the shape."""
    if form == "dense":
        if parts[""].shape != shape:
            raise ValueError(f"has shape {list(parts[''].shape)}, {list(shape)} is announced")
        return parts[""]
    count = math.prod(shape)
    bits, values = parts[parts_of(form)[0]], parts["values"]
    if form == "2:4 transposed" and len(shape) < 2:
        raise ValueError("has one axis, and is announced as transposed")
    if bits.dtype != np.uint8 or bits.shape != (-(-count // 8),):
        raise ValueError(f"has {bits.size} bytes of {parts_of(form)[0]}, {-(-count // 8)} belong to its shape")
    if form != "mask":
        bits = MASK_OF_PAIRS[bits]
        if not (HOLDS_TWO[bits].all() and count % 4 == 0):
            raise ValueError("has an index that is no 2:4")
    kept = np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
    if form == "mask" and count % 8 and bits[-1] >> count % 8:
        raise ValueError("has a mask that goes on beyond its last number")
    if values.shape != (int(np.count_nonzero(kept)),):
        raise ValueError(f"has {values.size} values, {int(np.count_nonzero(kept))} belong to its {parts_of(form)[0]}")
    flat = np.zeros(count, values.dtype)
    flat[kept] = values
    if form == "2:4 transposed":
        return np.ascontiguousarray(flat.reshape(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2))
    return flat.reshape(shape)


def _pairs(flat: Array, kept: NDArray[np.bool_]) -> dict[str, Array] | None:
    """The parts of the index form; None where a group holds more than two numbers."""
    mask = np.packbits(kept, bitorder="little")
    if not HOLDS_AT_MOST_TWO[mask].all():
        return None
    index = PAIRS_OF_MASK[mask]
    padded = np.unpackbits(MASK_OF_PAIRS[index], count=flat.size, bitorder="little").view(np.bool_)
    return {"index": index, "values": flat[padded]}


def _both_halves(table: list[int]) -> NDArray[np.uint8]:
    """A table for bytes from one for their halves."""
    return np.array([table[byte >> 4] << 4 | table[byte & 15] for byte in range(256)], np.uint8)


def _two_places(mask: int) -> int:
    """The index of a group from its mask of 4 bits: what is set, filled up with the first places that are not."""
    places = sorted(range(4), key=lambda place: (not mask >> place & 1, place))[:2]
    return min(places) | max(places) << 2


PLACES = {a | b << 2: 1 << a | 1 << b for a, b in itertools.combinations(range(4), 2)}  # index -> mask of 4 bits
PAIRS_OF_MASK = _both_halves([_two_places(mask) for mask in range(16)])
MASK_OF_PAIRS = _both_halves([PLACES.get(index, 0) for index in range(16)])
HOLDS_AT_MOST_TWO = np.array([max((b & 15).bit_count(), (b >> 4).bit_count()) <= 2 for b in range(256)])
HOLDS_TWO = np.array([(b & 15).bit_count() == 2 == (b >> 4).bit_count() for b in range(256)])

"""Packed tensors: back bit for bit, no larger than they need to be, and no broken file loads."""

import itertools
import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from backends.prune.packed import SCHEMA, load_packed, save_packed
from knowledge.values import InputError

DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64,
    torch.float8_e4m3fn, torch.int8, torch.int64, torch.bool, torch.complex64,
)  # fmt: skip
SHAPES = ((), (0,), (3, 0, 2), (1,), (7,), (64, 33), (48, 64), (64, 50), (4, 24, 32), (8, 4, 3, 3))
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ODD = {  # bits of −0, of NaNs that carry a number, of infinity and of the smallest number
    torch.float32: (-(2**31), 0x7FC12345, 0x7F800001, 0x7F800000, 1),
    torch.float16: (-(2**15), 0x7E12, 0x7C01, 0x7C00, 1),
    torch.bfloat16: (-(2**15), 0x7FC5, 0x7F81, 0x7F80, 1),
}


def bits(tensor):
    return tensor.contiguous().view(INTEGERS[tensor.element_size()])


def same(first, second):
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(bits(first), bits(second))


def noise(shape, dtype, density, seed=0):
    """Any bits at all in a share of the places."""
    torch.manual_seed(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (*shape, size), dtype=torch.uint8)
    if dtype == torch.bool:
        raw %= 2
    raw[torch.rand(shape) >= density] = 0
    return raw.view(dtype).reshape(shape)


def two_of_four(rows, columns, dtype=torch.float32, lost=0):
    """Two numbers at places of their own in every four neighbors of a row, but for `lost` of them."""
    torch.manual_seed(0)
    places = torch.rand(rows * columns // 4, 4).argsort(1)[:, :2]
    weight = torch.zeros(rows * columns // 4, 4).scatter_(1, places, torch.rand(rows * columns // 4, 2) + 0.5)
    weight[:lost] = 0
    return weight.view(rows, columns).to(dtype)


def written(tensor, path):
    """The parts of one tensor in the file, and how it says that they are to be read."""
    save_packed({"w": tensor}, path)
    return load_file(path), header(path)["w"]


def header(path):
    raw = path.read_bytes()
    return json.loads(json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])["__metadata__"]["tensors"])


def by_hand(parts, record):
    """The obvious way back: one number at a time."""
    rows, columns = record["shape"]
    flat, values, count = [0.0] * (rows * columns), iter(parts["w.values"].float().tolist()), rows * columns
    if record["form"] == "mask":
        for place in range(count):
            if parts["w.mask"][place // 8].item() >> place % 8 & 1:
                flat[place] = next(values)
    else:
        for group in range(count // 4):
            index = parts["w.index"][group // 2].item() >> 4 * (group % 2) & 15
            for place in (index & 3, index >> 2):
                flat[4 * group + place] = next(values)
    assert next(values, None) is None
    if record["form"] == "2:4 transposed":
        return torch.tensor(flat).view(columns, rows).t()
    return torch.tensor(flat).view(rows, columns)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bits_come_back(dtype, tmp_path):
    tensors = {
        f"{number}": noise(shape, dtype, density, number)
        for number, (shape, density) in enumerate(itertools.product(SHAPES, (0.0, 0.02, 0.4, 0.97, 1.0)))
    }
    save_packed(tensors, tmp_path / "p")
    found = load_packed(tmp_path / "p")
    assert list(found) == list(tensors)
    assert [name for name in tensors if not same(found[name], tensors[name])] == []
    assert {record["form"] for record in header(tmp_path / "p").values()} >= {"dense", "mask"}


@pytest.mark.parametrize("dtype", ODD)
def test_signs_of_zeros_and_numbers_in_nans_come_back(dtype, tmp_path):
    weight = noise((64, 64), dtype, 0.3)
    bits(weight).view(-1)[: len(ODD[dtype])] = torch.tensor(ODD[dtype], dtype=INTEGERS[weight.element_size()])
    parts, record = written(weight, tmp_path / "p")
    assert record["form"] == "mask"
    assert parts["w.mask"][0].item() & 31 == 31  # all five are stored
    assert same(load_packed(tmp_path / "p")["w"], weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["mask", "2:4", "2:4 transposed"])
def test_the_file_reads_as_its_description_says(case, dtype, tmp_path):
    weight = two_of_four(30, 52, dtype) if "2:4" in case else noise((30, 52), torch.int8, 0.4).to(dtype)
    weight = weight.t().contiguous() if "transposed" in case else weight
    parts, record = written(weight, tmp_path / "p")
    assert record["form"] == case
    assert torch.equal(by_hand(parts, record), weight.float())
    assert same(load_packed(tmp_path / "p")["w"], weight)


@pytest.mark.parametrize("rows", [1, 3])  # an odd number of groups
def test_an_odd_group_and_missing_numbers_are_filled_up(rows, tmp_path):
    weight = two_of_four(rows, 1028, lost=2)
    parts, record = written(weight, tmp_path / "p")
    assert record["form"] == "2:4"
    assert len(parts["w.values"]) == 2 * rows * 257
    assert torch.equal(by_hand(parts, record), weight)
    assert same(load_packed(tmp_path / "p")["w"], weight)


def test_a_stack_of_experts_and_a_convolution_keep_their_groups(tmp_path):
    experts = two_of_four(4 * 32, 64).view(4, 32, 64)
    kernels = two_of_four(32, 16 * 9).view(32, 16, 3, 3)
    tensors = {"experts": experts, "turned": experts.transpose(1, 2), "kernels": kernels}
    save_packed(tensors, tmp_path / "p")
    forms = {name: record["form"] for name, record in header(tmp_path / "p").items()}
    assert forms == {"experts": "2:4", "turned": "2:4 transposed", "kernels": "2:4"}
    assert all(same(found, tensors[name]) for name, found in load_packed(tmp_path / "p").items())


@pytest.mark.parametrize(("density", "share"), [(0.5, 0.5 + 1 / 32), (0.3, 0.3 + 1 / 32), (1.0, 1.0)])
def test_a_file_takes_a_bit_a_weight_and_the_numbers(density, share, tmp_path):
    torch.manual_seed(0)
    weight = torch.rand(1024, 1024) + 0.5
    weight.view(-1)[torch.randperm(1024**2)[round(density * 1024**2) :]] = 0
    save_packed({"w": weight, "bias": torch.zeros(16)}, tmp_path / "p")
    assert (tmp_path / "p").stat().st_size == pytest.approx(share * weight.nbytes, abs=1024)
    assert header(tmp_path / "p")["bias"]["form"] == "dense"  # two entries would take more


def test_numbers_that_sixteen_bits_hold_are_kept_in_sixteen(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(256, 256).masked_fill(torch.rand(256, 256) < 0.5, 0)
    tensors = {"bf16": weight.bfloat16().float() * 2.0**-40, "fp16": weight.half().float(), "fp32": weight}
    tensors |= {"dense": (weight + 300).half().float(), "odd": tensors["fp16"].clone()}
    tensors["odd"][0, 0] = 1 + 2**-20
    save_packed(tensors, tmp_path / "p")
    stored = load_file(tmp_path / "p")
    assert stored["bf16.values"].dtype == torch.bfloat16
    assert stored["fp16.values"].dtype == torch.float16
    assert stored["dense"].dtype == torch.float16
    assert stored["fp32.values"].dtype == stored["odd.values"].dtype == torch.float32
    assert all(same(found, tensors[name]) for name, found in load_packed(tmp_path / "p").items())


# -- broken files ------------------------------------------------------------------------------------------------------


def changed(record=(), parts=(), metadata=(), without=(), weight=None):
    """A function that writes a file with something else than what belongs there."""

    def write(path):
        found, described = written(two_of_four(16, 64) if weight is None else weight, path)
        found = {name: t for name, t in found.items() if name not in without} | dict(parts)
        told = {"format": "pt", "schema": SCHEMA, "tensors": json.dumps({"w": described | dict(record)})}
        save_file(found, path, metadata=told | dict(metadata))

    return write


def cut(path):
    written(two_of_four(16, 64), path)
    path.write_bytes(path.read_bytes()[:-5])


def flipped(path):
    written(two_of_four(16, 64), path)
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 4
    path.write_bytes(raw)


BYTES = torch.zeros(128, dtype=torch.uint8)
BROKEN = {
    "deserializing": cut,
    "w is not what was saved": flipped,
    "schema advisor.packed/9": changed(metadata={"schema": "advisor.packed/9"}),
    "tensors: Invalid JSON": changed(metadata={"tensors": "{"}),
    "tensors.w.form": changed({"form": "4:8"}),
    "tensors.w.shape.0": changed({"shape": [-16, 64]}),
    "unknown type 'float33'": changed({"dtype": "float33"}),
    "w is torch.float32, torch.float16 is announced": changed({"dtype": "float16"}),
    "w.index is missing": changed(without=["w.index"]),
    "more is not announced": changed(parts={"more": torch.ones(2)}),
    "w has 128 bytes of index, 192 belong to its shape": changed({"shape": [16, 96]}),
    "w has an index that is no 2:4": changed(parts={"w.index": BYTES}),
    "w has 5 values, 512 belong to its index": changed(parts={"w.values": torch.ones(5)}),
    "w has one axis": changed({"form": "2:4 transposed", "shape": [1024]}),
    "w has a mask that goes on": changed(  # the last byte tells of six numbers
        parts={"w.mask": torch.full((64,), 255, dtype=torch.uint8)}, weight=noise((10, 51), torch.float32, 0.5)
    ),
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_file_is_refused_in_a_line(words, tmp_path):
    BROKEN[words](tmp_path / "p")
    with pytest.raises(InputError) as error:
        load_packed(tmp_path / "p")
    assert words in str(error.value)
    assert str(error.value).startswith(f"packed: {tmp_path / 'p'}: unreadable: ")
    assert "\n" not in str(error.value)


def test_files_that_hold_something_else_are_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "plain")
    (tmp_path / "text").write_text("no tensors")
    for name, words in (("plain", "schema missing"), ("text", "unreadable"), ("none", "no such file"), (".", "unread")):
        with pytest.raises(InputError, match=words):
            load_packed(tmp_path / name)

"""Tensors in safetensors files: read one at a time from maps of the files, written as they are.

The maps are shared and read-only: their pages are the page cache's, count in no limit of this process (`ulimit -d`),
and are let go once read. The library maps privately, and a file counts in full while it is open.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from knowledge.files import replacing
from knowledge.shards import read_header, weight_files
from knowledge.values import InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
ALIGNED = 8  # bytes, of what a header is padded to


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it."""

    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    data: memoryview


def stored(tensor: Tensor, dtype: str) -> Stored:
    """A tensor of the process as a file of `dtype` holds it."""
    flat = tensor.detach().to(DTYPES[dtype]).cpu().contiguous().view(-1)  # narrowed before it travels
    return Stored(dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().data)


def write_shard(path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None) -> None:
    """Replace `path` by a safetensors file with these tensors, widest numbers first, as alignment wants it.

    Raises DiskFull.
    """
    names = sorted(tensors, key=lambda name: (-_bytes_each(tensors[name]), name))
    header, end = {"__metadata__": {"format": "pt"} | dict(metadata or {})}, 0
    for name in names:
        one = tensors[name]
        header[name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": (end, end + one.data.nbytes)}  # type: ignore[dict-item]
        end += one.data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(tensors[name].data)


def _bytes_each(one: Stored) -> int:
    return one.data.nbytes // max(math.prod(one.shape), 1)


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: in which file, from where to where."""

    file: int
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Shards:
    """The tensors of a folder's safetensors files.

    Raises InputError naming a file that is missing or truncated, with what to do about it.
    """

    def __init__(self, folder: Path) -> None:
        self.files = weight_files(folder)
        self.places: dict[str, Place] = {}
        self.maps: list[mmap.mmap] = []
        for number, path in enumerate(self.files):
            header, size = read_header(path), path.stat().st_size
            offsets = {name: entry["data_offsets"] for name, entry in header.items()}
            begin = size - max((end for _, end in offsets.values()), default=0)
            for name, entry in header.items():
                start, end = (begin + offset for offset in offsets[name])
                self.places[name] = Place(number, entry["dtype"], tuple(entry["shape"]), start, end)
            with path.open("rb") as file:
                self.maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def at(self, name: str) -> Stored:
        """A tensor where it lies, not copied."""
        place = self.places[name]
        return Stored(place.dtype, place.shape, memoryview(self.maps[place.file])[place.start : place.end])

    def read(self, name: str, pinned: bool = False) -> Tensor:
        """A copy of a tensor in its file's own numbers, `pinned` for a way to the GPU. Raises InputError."""
        place = self.places[name]
        if place.dtype not in DTYPES:
            problem = f"{name} holds {place.dtype} numbers"
            raise InputError("model", self.files[place.file], problem, "give the model before quantization")
        copied = torch.empty(place.end - place.start, dtype=torch.uint8, pin_memory=pinned)
        copied.numpy()[:] = np.frombuffer(self.at(name).data, np.uint8)
        self._advise([name], mmap.MADV_DONTNEED)
        return copied.view(DTYPES[place.dtype]).view(place.shape)

    def will_need(self, names: Iterable[str]) -> None:
        """Let the system read these tensors' pages ahead."""
        self._advise(names, mmap.MADV_WILLNEED)

    def let_go(self, names: Iterable[str]) -> None:
        """Unmap the pages of these tensors; they come back when they are read again."""
        self._advise(names, mmap.MADV_DONTNEED)

    def _advise(self, names: Iterable[str], advice: int) -> None:
        for name in names:
            place = self.places[name]
            start = place.start // mmap.PAGESIZE * mmap.PAGESIZE
            if place.end > start:
                self.maps[place.file].madvise(advice, start, place.end - start)

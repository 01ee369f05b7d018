"""Tensors in one safetensors file without their zeros; they load back bit for bit.

    <name>                                dense: the tensor as it is, where leaving out zeros saves nothing
    <name>.mask | .index, <name>.values   see `backends.prune.packing`
    __metadata__                          schema; tensors: JSON of {name: {form, shape, dtype, crc32}}

Floats of 32 bits that are all floats of 16, as of models that were stored like that, are kept in 16. The checksum is
that of the tensor which was saved: nothing else loads.
"""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from backends.prune.packing import Array, Form, pack, parts_of, unpack
from knowledge.faults import first_line
from knowledge.files import disk_full, replacing
from knowledge.values import InputError, Value

PACKED = "model.packed.safetensors"
SCHEMA = "advisor.packed/1"
HALVES = (torch.float16, torch.bfloat16)
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes: what numbers are viewed as


class Stored(Value):
    """How one tensor is stored."""

    form: Form
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: str  # of the tensor that loads, as torch names it
    crc32: int  # of its bytes


def save_packed(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the tensors of a state dict, each in its smallest form; raises DiskFull when the disk is full."""
    stored, metadata = encoded(tensors)
    with replacing(path) as temporary:
        try:
            save_file(stored, temporary, metadata=metadata)
        except SafetensorError as error:
            if disk_full(error):
                raise OSError(errno.ENOSPC, str(error)) from error
            raise


def encoded(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a file holds of the tensors of a state dict, each in its smallest form, and the file's metadata."""
    described: dict[str, Stored] = {}
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        kept = _halved(tensor)
        form, parts = pack(_array(kept))
        dtype = str(tensor.dtype).removeprefix("torch.")
        described[name] = Stored(form=form, shape=tuple(tensor.shape), dtype=dtype, crc32=_checksum(tensor))
        for part, array in parts.items():
            numbers = torch.from_numpy(array)
            stored[_key(name, part)] = numbers if part in ("mask", "index") else numbers.view(kept.dtype)
    text = json.dumps({name: one.model_dump(mode="json") for name, one in described.items()})
    return stored, {"format": "pt", "schema": SCHEMA, "tensors": text}


def load_packed(path: Path) -> dict[str, Tensor]:
    """The tensors that `save_packed` wrote; raises InputError where the file is missing, truncated or contradictory."""
    return dict(read_packed(path))


def read_packed(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The same, one tensor in memory at a time."""
    try:
        with safe_open(path, framework="pt") as opened:
            described = _described(opened.metadata() or {})
            keys = {_key(name, part): name for name, one in described.items() for part in parts_of(one.form)}
            if odd := set(opened.keys()) ^ set(keys):
                raise ValueError(f"{min(odd)} is {'missing' if min(odd) in keys else 'not announced'}")
            for name, one in described.items():
                parts = {part: opened.get_tensor(_key(name, part)) for part in parts_of(one.form)}
                yield name, _tensor(name, one, parts)
    except FileNotFoundError:
        raise InputError("packed", path, "no such file", "run the plan again") from None
    except (SafetensorError, OSError, ValueError) as error:
        problem = first_line(error)
        raise InputError("packed", path, f"unreadable: {problem}", "fetch it again, or run the plan again") from error


def _described(metadata: Mapping[str, str]) -> dict[str, Stored]:
    """How each tensor is stored; raises ValueError where the file does not say."""
    if metadata.get("schema") != SCHEMA:
        raise ValueError(f"schema {metadata.get('schema', 'missing')}, {SCHEMA} is known")
    try:
        described = TypeAdapter(dict[str, Stored]).validate_json(metadata.get("tensors", ""))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, ('tensors', *first['loc'])))}: {first['msg']}") from None
    for name, one in described.items():
        if not isinstance(getattr(torch, one.dtype, None), torch.dtype):
            raise ValueError(f"{name} has the unknown type {one.dtype!r}")
    return described


def _tensor(name: str, one: Stored, parts: Mapping[str, Tensor]) -> Tensor:
    """One tensor from its parts; raises ValueError where it is not the one that was saved."""
    dtype: torch.dtype = getattr(torch, one.dtype)
    held = parts[parts_of(one.form)[-1]].dtype
    if held != dtype and not (held in HALVES and dtype == torch.float32):
        raise ValueError(f"{name} is {held}, {dtype} is announced")
    try:
        array = unpack(one.form, {part: _array(tensor) for part, tensor in parts.items()}, one.shape)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
    tensor = torch.from_numpy(array).view(held).to(dtype)
    if _checksum(tensor) != one.crc32:
        raise ValueError(f"{name} is not what was saved: its checksum differs")
    return tensor


def _halved(tensor: Tensor) -> Tensor:
    """The tensor in 16 bits where that changes no bit of what it is in 32; else as it is."""
    if tensor.dtype == torch.float32:
        for dtype in HALVES:
            if torch.equal((half := tensor.to(dtype)).float().view(torch.int32), tensor.view(torch.int32)):
                return half
    return tensor


def _array(tensor: Tensor) -> Array:
    """A tensor's bits as integers, in its shape."""
    tensor = tensor.detach().cpu().contiguous()
    array: Array = tensor.view(INTEGERS[tensor.element_size()]).numpy()
    return array


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(_array(tensor).data)


def _key(name: str, part: str) -> str:
    """A part's name in the file: no tensor of a state dict has another's name before a dot."""
    return f"{name}.{part}" if part else name

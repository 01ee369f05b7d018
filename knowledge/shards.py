"""Safetensors files as Hugging Face folders hold them: which there are, and what their headers say.

model.safetensors   [8 bytes: length n of the header][n bytes of JSON: name -> dtype, shape, data_offsets][the weights]
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from knowledge.values import InputError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LONGEST_HEADER_BYTES = 100_000_000
MOST_NUMBERS = 2**53  # in a tensor: tables count in 64 bits
REMEDY = "copy or download it again"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that the folder's weights are in; raises InputError naming one that is not there."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX, "is no safetensors index")
        places = index.get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
            raise InputError("model", folder / INDEX, "is no safetensors index", REMEDY)
        names = sorted(set(places.values()))
    else:
        names = [SINGLE]
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            pickled = any(folder.glob("pytorch_model*.bin"))
            why = "only pickled weights, which can run code" if pickled else f"no {name}"
            saved = "save with save_pretrained(safe_serialization=True)"
            remedy = REMEDY if names != [SINGLE] and not pickled else saved
            raise InputError("model", folder, f"the folder has {why}", remedy)
    return [folder / name for name in names]


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Header of one safetensors file, its lengths checked against the file's size; raises InputError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, LONGEST_HEADER_BYTES):
            raise InputError("model", path, f"truncated or no safetensors file ({size:,} bytes)", REMEDY)
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        ends = [int(entry["data_offsets"][1]) for entry in header.values()]
        wrong = [
            name
            for name, entry in header.items()
            if not isinstance(entry["dtype"], str) or not _is_shape(entry["shape"])
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise InputError("model", path, "its header is no safetensors header", REMEDY) from None
    if wrong:
        raise InputError("model", path, f"its header gives {wrong[0]} no shape", REMEDY)
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise InputError("model", path, f"truncated: {size:,} bytes instead of {expected:,}", REMEDY)
    return dict(header)


def _is_shape(value: object) -> bool:
    if not isinstance(value, list) or not all(isinstance(n, int) and n >= 0 for n in value):
        return False
    return math.prod(value) <= MOST_NUMBERS


def read_json(path: Path, problem: str) -> dict[str, Any]:
    """A file that holds a JSON object; raises InputError saying `problem` where it holds anything else."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError, RecursionError):
        found = None
    except OSError as error:
        raise InputError("model", path, f"cannot be read ({error.strerror})") from None
    if not isinstance(found, dict):
        raise InputError("model", path, problem, "save the model again")
    return found

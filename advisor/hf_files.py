"""What a Hugging Face folder says about itself: config.json and the headers of its safetensors files.

model.safetensors   [8 bytes: length n of the header][n bytes of JSON: name -> dtype, shape, data_offsets][the weights]
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowledge.configs import check_counts
from knowledge.values import InputError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LONGEST_HEADER_BYTES = 100_000_000
REMEDY = "copy or download it again"
FLOATS = {"F64", "F32", "F16", "BF16"}

Shapes = dict[str, tuple[int, ...]]


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; raises InputError where it is missing, no JSON object, or of a quantized model."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError("model", folder, "the folder has no config.json", "give the folder that save_pretrained wrote")
    config = _json(path, "is no JSON configuration")
    if "quantization_config" in config:
        raise InputError("model", folder, "is quantized already", "give the model that it was made from")
    if config.get("is_encoder_decoder"):
        raise InputError("model", folder, "encoder–decoder models are not supported", "give its encoder or a decoder")
    check_counts(config, folder)
    return config


def read_shapes(folder: Path) -> Shapes:
    """Shape of every tensor in the folder's safetensors files, by name.

    Raises InputError: no such file, a truncated or foreign one, integer weights.
    """
    shapes: Shapes = {}
    for path in _weight_files(folder):
        for name, entry in read_header(path).items():
            if entry["dtype"] in FLOATS:
                shapes[name] = tuple(entry["shape"])
            elif name.endswith("weight"):
                raise InputError(
                    "model", path, f"{name} holds {entry['dtype']} numbers", "give the model before quantization"
                )
    if not shapes:
        raise InputError("model", folder, "its safetensors files hold no weights", REMEDY)
    return shapes


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
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise InputError("model", path, "its header is no safetensors header", REMEDY) from None
    if wrong:
        raise InputError("model", path, f"its header gives {wrong[0]} no shape", REMEDY)
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise InputError("model", path, f"truncated: {size:,} bytes instead of {expected:,}", REMEDY)
    return dict(header)


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and n >= 0 for n in value)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        index = _json(folder / INDEX, "is no safetensors index")
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
            raise InputError(
                "model", folder, f"the folder has {why}", "save with save_pretrained(safe_serialization=True)"
            )
    return [folder / name for name in names]


def _json(path: Path, problem: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError):
        found = None
    except OSError as error:
        raise InputError("model", path, f"cannot be read ({error.strerror})") from None
    if not isinstance(found, dict):
        raise InputError("model", path, problem, "save the model again")
    return found


def number(config: Mapping[str, Any], *names: str) -> int:
    """First of these configuration fields that holds a whole number; 0 where none does."""
    found = (config.get(name) for name in names)
    return next((v for v in found if isinstance(v, int) and not isinstance(v, bool)), 0)

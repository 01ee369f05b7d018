"""What a Hugging Face folder says about itself: config.json and the headers of its safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowledge.configs import QUANTIZED, check_counts
from knowledge.shards import REMEDY, read_header, read_json, weight_files
from knowledge.values import InputError

FLOATS = {"F64", "F32", "F16", "BF16"}

Shapes = dict[str, tuple[int, ...]]


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; raises InputError where it is missing, no JSON object, or of a quantized model."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError("model", folder, "the folder has no config.json", "give the folder that save_pretrained wrote")
    config = read_json(path, "is no JSON configuration")
    if "quantization_config" in config:
        raise InputError("model", folder, "is quantized already", QUANTIZED)
    if config.get("is_encoder_decoder"):
        raise InputError("model", folder, "encoder–decoder models are not supported", "give its encoder or a decoder")
    check_counts(config, folder)
    return config


def read_shapes(folder: Path) -> Shapes:
    """Shape of every tensor in the folder's safetensors files, by name.

    Raises InputError: no such file, a truncated or foreign one, integer weights.
    """
    shapes: Shapes = {}
    for path in weight_files(folder):
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


def number(config: Mapping[str, Any], *names: str) -> int:
    """First of these configuration fields that holds a whole number; 0 where none does."""
    found = (config.get(name) for name in names)
    return next((v for v in found if isinstance(v, int) and not isinstance(v, bool)), 0)

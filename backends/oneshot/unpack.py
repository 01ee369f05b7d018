"""A folder that a compression packed, as a plain model folder again: one shard in memory at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from backends.oneshot.forms import NAMES, PACKED_INDEX, PACKED_SUFFIX, WithoutZeros
from backends.oneshot.integers import SCHEME, STEMS
from backends.oneshot.output import BESIDES, CONFIG
from backends.oneshot.progress import PROGRESS
from backends.oneshot.shards import stored, write_shard
from backends.prune.packed import read_packed
from backends.quantize.pack_quantized import FORMAT, Scheme, unpacked
from knowledge.faults import first_line
from knowledge.files import copy_file, replacing_folder, write_text
from knowledge.shards import INDEX, REMEDY, read_json
from knowledge.values import InputError


@dataclass(frozen=True)
class Unpacked:
    """A plain folder, and what it was made from."""

    folder: Path
    form: str
    weights: int  # that were packed
    bytes_before: int  # of its files
    bytes_after: int


def unpack_folder(source: Path, out: Path) -> Unpacked:
    """Write the model that `compress_folder` packed into `source` with plain weights.

    They are those of the file, bit for bit where zeros were left out, and codes times scales in the numbers of the
    scales. Raises InputError: nothing is packed there, a file is missing or broken, `out` holds something; DiskFull.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("out", out, "is not empty, or no folder", "give a new folder")
    index = source / (PACKED_INDEX if (source / PACKED_INDEX).is_file() else INDEX)
    if not index.is_file():
        remedy = "give a folder that `advisor compress` has finished"
        raise InputError("folder", source, "holds no index of packed weights", remedy)
    listed = read_json(index, "is no safetensors index").get("weight_map")
    files = sorted({Path(str(file)).name for file in listed.values()}) if isinstance(listed, dict) else []
    places: dict[str, str] = {}
    before = after = total = count = 0
    with replacing_folder(out) as folder:
        for file in files:
            if not (source / file).is_file():
                raise InputError("folder", source, f"has no {file}", REMEDY)
            held, packed = _plain(source / file)
            name = file.removesuffix(PACKED_SUFFIX) + ".safetensors" if file.endswith(PACKED_SUFFIX) else file
            stores = {one: stored(tensor, NAMES[tensor.dtype]) for one, tensor in held.items()}
            write_shard(folder / name, stores)
            places |= dict.fromkeys(held, name)
            count += packed
            before += (source / file).stat().st_size
            after += (folder / name).stat().st_size
            total += sum(one.data.nbytes for one in stores.values())
        if not count:
            raise InputError("folder", source, "holds no packed weights", "it can be used as it is")
        for path in sorted(source.iterdir()):
            if path.is_file() and path.suffix in BESIDES and path.name not in (INDEX, PACKED_INDEX, PROGRESS, CONFIG):
                copy_file(path, folder / path.name)
        config = read_json(source / CONFIG, "is no JSON configuration")
        config.pop("quantization_config", None)
        write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
        made = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_text(folder / INDEX, json.dumps(made, indent=2))
    return Unpacked(out, WithoutZeros.name if index.name == PACKED_INDEX else FORMAT, count, before, after)


def _plain(path: Path) -> tuple[dict[str, Tensor], int]:
    """The weights of a shard, and how many of them were packed."""
    if path.name.endswith(PACKED_SUFFIX):
        held = dict(read_packed(path))
        return held, len(held)
    try:
        with safe_open(path, framework="pt") as opened:
            described = opened.metadata() or {}
            held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        stems = json.loads(described.get(STEMS, "[]"))
        for stem in stems:
            parts = {
                name.removeprefix(stem): held.pop(name) for name in list(held) if name.startswith(f"{stem}weight_")
            }
            held[f"{stem}weight"] = unpacked(parts, Scheme.model_validate_json(described[SCHEME]))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError("folder", path, f"unreadable: {first_line(error)}", REMEDY) from error
    return held, len(stems)

"""A model folder compressed block by block into another, whatever its size."""

from __future__ import annotations

import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from knowledge.configs import longest_of
from knowledge.techniques.base import Technique
from knowledge.techniques.catalog import build, technique_class
from knowledge.values import InputError, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from backends.oneshot.progress import Layer

SCHEMA = "advisor.compress/1"
WINDOW = 128  # tokens of a text that are read together, where the model reads as many
KINDS = "give FILE.safetensors:KEY or an .npz with input_ids, integers [windows, length], or a .txt file"


def compress(
    model: Path,
    technique: str,
    settings: Sequence[str],
    calibration: str,
    out: Path,
    seq_len: int | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Compress the blocks of a Hugging Face folder, one in memory at a time; a run that was cut off goes on.

    Embeddings and head stay as they are. Raises InputError for what cannot be read or carried out, DiskFull.
    """
    technique_class(technique)
    chosen = build(Stage(technique=technique, params=dict(map(setting, settings))), "set")
    from backends.memory import PeakMemory
    from backends.oneshot.chosen import method_for
    from backends.oneshot.stream import compress_folder

    method_for(chosen, {})  # says no before anything is read
    if not (model / "config.json").is_file():
        raise InputError("model", model, "is no Hugging Face folder: it has no config.json", "give such a folder")
    tokens = read_tokens(calibration, model, seq_len)
    peak, begun = PeakMemory(), time.perf_counter()
    words = chosen.model_dump_json()
    found = compress_folder(
        model, out, tokens, lambda readers: method_for(chosen, readers), f"{chosen.id} {words}", tell=progress
    )
    inputs, zeros = written(out, found.layers)
    return {
        "schema": SCHEMA,
        "folder": str(out),
        "technique": chosen.id,
        "params": chosen.model_dump(mode="json"),
        "calibration_tokens": tokens.numel(),
        "blocks": found.blocks,
        "resumed_at": found.resumed_at,
        "afresh": found.afresh,
        "layers": len(found.layers),
        "zeros": zeros,
        "bits": getattr(chosen, "bits", 32),
        "seconds": time.perf_counter() - begun,
        "peak_memory_bytes": peak.bytes,
        "warnings": list(warnings(chosen, found.layers, inputs)),
    }


def setting(text: str) -> tuple[str, Any]:
    """`ratio=0.5` as a name and a value; raises InputError."""
    name, equals, value = text.partition("=")
    try:
        read = yaml.load(value, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError):
        equals = ""
    if not equals or not name.strip():
        raise InputError("set", text, "sets nothing", "write parameter=value, such as ratio=0.5")
    return name.strip(), read


def read_tokens(place: str, model: Path, seq_len: int | None) -> Tensor:
    """Token windows [windows, length] of a file; a text is cut into windows of `seq_len`. Raises InputError.

    By default these have WINDOW tokens, or as many as the model reads where that is fewer.
    """
    from safetensors import SafetensorError

    file, colon, key = place.rpartition(":")
    keyed = bool(colon) and file.endswith(".safetensors")
    path = Path(file if keyed else place)
    if not path.is_file():
        raise InputError("calibration", place, "no such file", KINDS)
    try:
        if path.suffix == ".safetensors":
            return _of_tensors(path, key if keyed else "", place)
        if path.suffix == ".npz":
            return _of_arrays(path, place)
        text = path.read_text("utf-8")
    except (SafetensorError, zipfile.BadZipFile, zlib.error, OSError, ValueError) as error:
        raise InputError("calibration", place, f"cannot be read: {str(error).splitlines()[0]}", KINDS) from error
    return _tokenized(text, place, model, seq_len)


def _of_tensors(path: Path, key: str, place: str) -> Tensor:
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        names = sorted(opened.keys())
        if key not in names:
            problem = f"has no tensor {key!r}" if key else "names no tensor"
            there = ", ".join(names[:5])
            raise InputError("calibration", place, problem, f"write {path.name}:KEY; it has {there}")
        tensor: Tensor = opened.get_tensor(key)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError("calibration", place, f"holds {str(tensor.dtype).removeprefix('torch.')}, no tokens", KINDS)
    return tensor.long()


def _of_arrays(path: Path, place: str) -> Tensor:
    import numpy as np
    import torch

    if not zipfile.is_zipfile(path):
        raise InputError("calibration", place, "is no .npz archive", KINDS)
    with np.load(path, allow_pickle=False) as arrays:
        if "input_ids" not in arrays:
            raise InputError("calibration", place, "has no array 'input_ids'", f"it has {', '.join(arrays.files[:5])}")
        array = arrays["input_ids"]
    if array.dtype.kind not in "iu":
        raise InputError("calibration", place, f"holds {array.dtype}, no tokens", KINDS)
    return torch.from_numpy(array.astype(np.int64))


def _tokenized(text: str, place: str, model: Path, seq_len: int | None) -> Tensor:
    import torch
    from transformers import AutoTokenizer

    from backends.huggingface import read_config

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        problem = f"{model} has no tokenizer to read a text with"
        raise InputError("calibration", place, problem, "give token windows instead") from error
    length = seq_len or min(WINDOW, longest_of(read_config(model)) or WINDOW)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = len(ids) // length
    if not whole:
        raise InputError("calibration", place, f"{len(ids)} tokens fill no window of {length}", "give a longer text")
    return torch.tensor(ids[: whole * length]).view(whole, length)


def written(folder: Path, layers: Sequence[Layer]) -> tuple[dict[str, int], float]:
    """Inputs of each layer, and the share of zeros in all of them, read from the folder a block at a time."""
    import torch

    from backends.memory import return_freed
    from backends.oneshot.matrices import matrices
    from backends.oneshot.parts import Parts

    parts = Parts(folder, [torch.device("cpu")])
    inputs: dict[str, int] = {}
    zeros = total = 0
    for number in range(len(parts.blocks)):
        parts.fill(number, {name: parts.shards.read(name) for name in parts.names[number]})
        of_block = [layer.path for layer in layers if layer.path.startswith(f"{parts.path}.{number}.")]
        for matrix in (matrix for path in of_block for matrix in matrices(parts.model, path)):
            weight = matrix.read()
            inputs[matrix.path] = weight.shape[1]
            zeros += weight.numel() - int(weight.count_nonzero())
            total += weight.numel()
        parts.shards.let_go(parts.names[number])
        parts.free(number)
        return_freed()
    return inputs, zeros / max(total, 1)


def warnings(technique: Technique, layers: Sequence[Layer], inputs: Mapping[str, int]) -> Iterator[str]:
    """What the calibration data did not tell, and what the folder is not. `inputs` by the path of a layer."""
    if hasattr(technique, "embedding_bits"):
        yield (
            "Weights lie on their grids as floats, so the folder is as large as before; embeddings and head stay as "
            "they are: embedding_bits and accuracy_level are not used. `advisor run` makes a file of packed weights."
        )
        size: int = getattr(technique, "group_size", 0)
        if narrow := sum(inputs[layer.path] < size for layer in layers):
            yield f"{narrow} of {len(layers)} layers are narrower than a group of {size}: a row has one scale there."
    damping: float = getattr(technique, "damping", float("inf"))
    for layer in layers:
        width = inputs[layer.path]
        if layer.unread:
            yield f"{layer.path}: {layer.unread} of {layer.matrices} matrices read no token and went by their size."
        elif hasattr(technique, "damping") and layer.fewest_tokens < width:
            yield f"{layer.path}: a matrix read {layer.fewest_tokens:,} tokens, fewer than its {width:,} inputs."
        if layer.damping > damping:
            yield f"{layer.path}: its Hessian took a damping of {layer.damping:g} instead of {damping:g}."

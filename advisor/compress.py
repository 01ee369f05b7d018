"""A model folder compressed block by block into another, whatever its size."""

from __future__ import annotations

import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.compressed import loading, packing, warnings
from advisor.progress import Progress
from knowledge.configs import longest_of
from knowledge.faults import first_line
from knowledge.techniques.catalog import build, technique_class
from knowledge.values import InputError, Stage
from knowledge.yaml_values import parse

if TYPE_CHECKING:
    from torch import Tensor

    from backends.oneshot.integers import Asked

SCHEMA, UNPACKED_SCHEMA = "advisor.compress/1", "advisor.unpack/1"
WINDOW = 128  # tokens of a text that are read together, where the model reads as many
KINDS = "give FILE.safetensors:KEY or an .npz with input_ids, integers [windows, length], or a .txt file"


def compress(
    model: Path,
    technique: str,
    settings: Sequence[str],
    calibration: str,
    out: Path,
    seq_len: int | None,
    progress: Progress,
    form: Asked = "auto",
) -> dict[str, Any]:
    """Compress the blocks of a Hugging Face folder, one in memory at a time; a run that was cut off goes on.

    Embeddings and head stay as they are. `form`: see `backends.oneshot.integers.form_for`. Raises InputError for what
    cannot be read or carried out, DiskFull.
    """
    technique_class(technique)
    chosen = build(Stage(technique=technique, params=dict(map(setting, settings))), "set")
    from backends.memory import PeakMemory
    from backends.oneshot.chosen import check_layers, method_for
    from backends.oneshot.stream import compress_folder

    method_for(chosen, {})  # says no before anything is read
    if not (model / "config.json").is_file():
        raise InputError("model", model, "is no Hugging Face folder: it has no config.json", "give such a folder")
    tokens = read_tokens(calibration, model, seq_len)
    peak, begun = PeakMemory(), time.perf_counter()
    words = chosen.model_dump_json()
    found = compress_folder(
        model,
        out,
        tokens,
        lambda readers: method_for(chosen, readers),
        f"{chosen.id} {words}",
        form=form,
        check=lambda paths: check_layers(chosen, paths),
        tell=progress,
    )
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
        "zeros": sum(layer.zeros for layer in found.layers) / max(sum(layer.weights for layer in found.layers), 1),
        "bits": getattr(chosen, "bits", 32),
        "format": found.form,
        "bytes_before": found.bytes_before,
        "bytes_after": found.bytes_after,
        "packed": packing(found),
        "load": loading(found),
        "seconds": time.perf_counter() - begun,
        "peak_memory_bytes": peak.bytes,
        "warnings": list(warnings(chosen, found)),
    }


def unpack(folder: Path, out: Path) -> dict[str, Any]:
    """Write what `compress` packed as a plain model folder. Raises InputError where nothing is packed, DiskFull."""
    from backends.oneshot.unpack import unpack_folder

    found = unpack_folder(folder, out)
    return {
        "schema": UNPACKED_SCHEMA,
        "folder": str(found.folder),
        "format": found.form,
        "weights": found.weights,
        "bytes_before": found.bytes_before,
        "bytes_after": found.bytes_after,
    }


def setting(text: str) -> tuple[str, Any]:
    """`ratio=0.5` as a name and a value; raises InputError."""
    name, equals, value = text.partition("=")
    try:
        read = parse(value.encode())[0].value
    except ValueError:  # no YAML, or bytes that are no text
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
        raise InputError("calibration", place, f"cannot be read: {first_line(error)}", KINDS) from error
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

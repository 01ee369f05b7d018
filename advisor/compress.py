"""A model folder compressed block by block into another, whatever its size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from knowledge.techniques.base import Technique
from knowledge.techniques.catalog import build, technique_class
from knowledge.values import InputError, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from backends.oneshot.progress import Layer

SCHEMA = "advisor.compress/1"
KINDS = "give FILE.safetensors:KEY or an .npz with input_ids, integers [windows, length], or a .txt file"


def compress(
    model: Path,
    technique: str,
    settings: Sequence[str],
    calibration: str,
    out: Path,
    seq_len: int,
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
        "seconds": time.perf_counter() - begun,
        "peak_memory_bytes": peak.bytes,
        "warnings": list(warnings(chosen, found.layers)),
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


def read_tokens(place: str, model: Path, seq_len: int) -> Tensor:
    """Token windows [windows, length] of a file; a text is cut into windows of `seq_len`. Raises InputError."""
    import numpy as np
    import torch
    from safetensors import SafetensorError, safe_open

    file, colon, key = place.rpartition(":")
    path = Path(file if colon and file.endswith(".safetensors") else place)
    if not path.is_file():
        raise InputError("calibration", place, "no such file", KINDS)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as opened:
                if key not in opened.keys():  # noqa: SIM118  # it is no mapping
                    there = ", ".join(sorted(opened.keys())[:5])
                    raise InputError("calibration", place, f"has no tensor {key!r}", f"it has {there}")
                return torch.as_tensor(opened.get_tensor(key))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return torch.from_numpy(arrays["input_ids"])
        text = path.read_text("utf-8")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError("calibration", place, f"cannot be read: {str(error).splitlines()[0]}", KINDS) from error
    return _tokenized(text, place, model, seq_len)


def _tokenized(text: str, place: str, model: Path, seq_len: int) -> Tensor:
    import torch
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        problem = f"{model} has no tokenizer to read a text with"
        raise InputError("calibration", place, problem, "give token windows instead") from error
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = len(ids) // seq_len
    if not whole:
        raise InputError("calibration", place, f"{len(ids)} tokens fill no window of {seq_len}", "give a longer text")
    return torch.tensor(ids[: whole * seq_len]).view(whole, seq_len)


def warnings(technique: Technique, layers: Sequence[Layer]) -> Iterator[str]:
    """What the calibration data did not tell, and what the folder is not."""
    if hasattr(technique, "embedding_bits"):
        yield "Weights lie on their grids as floats, so the folder is as large as before; embeddings and head stay."
    damping: float = getattr(technique, "damping", float("inf"))
    for layer in layers:
        if layer.unread:
            yield f"{layer.path}: {layer.unread} of {layer.matrices} matrices read no token and went by their size."
        if layer.damping > damping:
            yield f"{layer.path}: its Hessian took a damping of {layer.damping:g} instead of {damping:g}."

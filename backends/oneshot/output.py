"""The folder that a streamed compression fills: a shard per block, then what makes it a model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from backends.oneshot.forms import PACKED_INDEX, Dense
from backends.oneshot.parts import OUTSIDE, Parts
from backends.oneshot.progress import PROGRESS, Progress, write_progress
from backends.oneshot.shards import write_shard
from knowledge.files import copy_file, write_text
from knowledge.shards import INDEX, read_header, read_json
from knowledge.values import InputError

ACTIVATIONS, LOCK, CONFIG = ".activations", ".lock", "config.json"
BESIDES = {".json", ".txt", ".model", ".jinja", ".tiktoken"}  # what is copied besides weights


def finish(form: Dense, out: Path, names: Sequence[str], progress: Progress) -> None:
    """Write what is no block's, and what makes a folder of files a model; the index last."""
    parts = form.parts
    for (_, held), name in zip(_rest(parts), names[progress.blocks :], strict=True):
        write_shard(out / name, {one: parts.shards.at(one) for one in held})
        parts.shards.let_go(held)
    for path in sorted(parts.folder.iterdir()):
        if path.is_file() and path.suffix in BESIDES and path.name not in (INDEX, PACKED_INDEX, PROGRESS):
            copy_file(path, out / path.name)
    config = read_json(parts.folder / CONFIG, "is no JSON configuration")
    if (changed := form.config(config, progress.layers)) != config:
        write_text(out / CONFIG, json.dumps(changed, indent=2) + "\n")
    places = {tensor: name for name in names for tensor in read_header(out / name)}
    index = {"metadata": {"total_size": weight_bytes(out, names)}, "weight_map": dict(sorted(places.items()))}
    write_text(out / form.index, json.dumps(index, indent=2))
    write_progress(out, progress.model_copy(update={"finished": True}))
    shutil.rmtree(out / ACTIVATIONS, ignore_errors=True)


def weight_bytes(out: Path, names: Sequence[str]) -> int:
    """Bytes of all tensors in these files."""
    offsets = (one["data_offsets"] for name in names for one in read_header(out / name).values())
    return sum(end - start for start, end in offsets)


def _rest(parts: Parts) -> list[tuple[int, list[str]]]:
    """The tensors that are no block's, by the file that they are in."""
    of_blocks = {name for number, names in parts.names.items() if number != OUTSIDE for name in names}
    found: dict[int, list[str]] = {}
    for name, place in parts.shards.places.items():
        if name not in of_blocks:
            found.setdefault(place.file, []).append(name)
    return sorted(found.items())


def file_names(form: Dense) -> list[str]:
    """A shard per block, then one per file that holds anything else."""
    blocks = len(form.parts.blocks)
    count = blocks + len(_rest(form.parts))
    return [
        f"model-{number:05}-of-{count:05}{form.suffix if number <= blocks else Dense.suffix}"
        for number in range(1, count + 1)
    ]


def broken(out: Path, names: Sequence[str], progress: Progress, batches: int) -> str:
    """What is missing of what an earlier run says to have done; empty where all is there."""
    try:
        for name in names if progress.finished else names[: progress.done]:
            read_header(out / name)
    except (OSError, InputError):
        return f"{name} of an earlier run is missing or cut off"
    if 0 < progress.done < progress.blocks:
        files = list((out / ACTIVATIONS).glob(f"block-{progress.done}-batch-*.bin"))
        if len(files) != batches:
            return "activations of an earlier run are missing"
    return ""


def clear(out: Path) -> None:
    """Remove an earlier run's results, the index first: a folder without it is no model."""
    for index in (INDEX, PACKED_INDEX):
        (out / index).unlink(missing_ok=True)
    for path in out.glob("model-*-of-*.safetensors"):
        path.unlink()
    shutil.rmtree(out / ACTIVATIONS, ignore_errors=True)


@contextmanager
def alone(out: Path, source: Path) -> Iterator[None]:
    """One run at a time in a folder; what a killed one left half written is removed."""
    if out.exists() and (not out.is_dir() or out.resolve() == source.resolve()):
        raise InputError("out", out, "is the model itself, or no folder", "give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError("out", out, "another run is at work there", "wait for it, or give a new folder") from None
    try:
        for path in (*out.glob(".model-*"), *out.glob(".compression-*"), *(out / ACTIVATIONS).glob(".block-*")):
            path.unlink()
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)
        lock.release()


def fingerprint(source: Path, files: Sequence[Path]) -> str:
    """Of the folder: its configuration, and the names, sizes and times of its weights."""
    found = hashlib.sha256((source / "config.json").read_bytes())
    for path in files:
        found.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return found.hexdigest()[:16]

"""One-shot compression of a model that need not fit into memory: one block at a time, from shards to shards.

source/  config.json, model.safetensors or its shards
   │ embeddings ─► what enters the first block; then they are let go
   │ block 0 ─► memory ─► the engine ─► out/model-00001-of-….safetensors, and what enters block 1 to disk
   │ block 1 ─► …                                                           (a killed run goes on there)
   └ all else, as it is ─► the last shards; then index, config.json, tokenizer: out/ is a model folder

Peak memory: embeddings, or one block, its statistics and the activations, however deep the model is. Arithmetic is
float32; weights are written in the numbers of their file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.memory import return_freed, return_large_arrays
from backends.models import default_devices
from backends.oneshot.blocks import enter, gone
from backends.oneshot.engine import chosen_matrices, compress, done_by_path
from backends.oneshot.feed import held_bytes, layers_width, scores_width, windows_at_once
from backends.oneshot.fetch import fetched
from backends.oneshot.forms import Dense
from backends.oneshot.integers import Asked, form_for
from backends.oneshot.matrices import Matrix, layer_paths
from backends.oneshot.methods import Method
from backends.oneshot.output import ACTIVATIONS, alone, broken, clear, file_names, fingerprint, finish, weight_bytes
from backends.oneshot.parts import OUTSIDE, Parts
from backends.oneshot.progress import Key, Layer, Progress, read_progress, write_progress
from backends.oneshot.readers import readers_together
from backends.oneshot.spill import Batch, drop, spilled
from backends.store import code_version
from knowledge.configs import longest_of
from knowledge.values import InputError

Make = Callable[[Mapping[str, Sequence[Matrix]]], Method]  # of a block, from which of its matrices read the same


@dataclass(frozen=True)
class Streamed:
    """A finished folder, and how it came about."""

    folder: Path
    blocks: int
    resumed_at: int  # blocks that an earlier run had done
    afresh: str  # why an earlier run's blocks were not used; empty where there were none, or they were
    layers: tuple[Layer, ...]
    form: str  # as `backends.oneshot.forms` names it
    not_packed: str  # why it is none that packs, where that was left open
    bytes_before: int
    bytes_after: int


def compress_folder(
    source: Path,
    out: Path,
    tokens: Tensor,
    make: Make,
    setting: str,
    *,
    form: Asked = "dense",
    devices: Sequence[torch.device] = (),
    at_once: int | None = None,
    check: Callable[[Sequence[str]], None] = lambda paths: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Streamed:
    """Compress the dense layers and experts of every block of a Hugging Face folder into another such folder.

    `tokens`: [windows, length]. `setting` names what `make` makes, all parameters included: a run that is begun again
    with the same goes on after the last finished block. `form`: see `form_for`. `devices`: what computes, blocks taking
    them in turn; by default every GPU there is. `at_once`: windows that pass a block together, by default what memory
    allows. `check` gets the paths of all layers before any is changed, `tell` a line per block.

    Raises InputError: a shard missing or truncated, a weight missing or of another shape, tokens that the model does
    not know or too few for a Hessian, activations that are not finite, another run at work there; DiskFull.
    """
    return_large_arrays()
    parts = Parts(source, devices or default_devices())
    _check_tokens(tokens, parts)
    tokens = tokens.cpu().long()
    method = make(readers_together(_matrices(parts, 0)))
    chosen = [_matrices(parts, n) for n in range(len(parts.blocks))]
    if not any(chosen):
        raise InputError("model", source, f"has no dense layers or experts in {parts.path}", "use `advisor run`")
    check([matrix.path for found in chosen for matrix in found])
    written, not_packed = form_for(form, parts, method, chosen)
    at_once = at_once or _at_once(tokens, parts, [one for each in chosen for one in each], method)
    key = Key(
        source=fingerprint(source, parts.shards.files),
        method=setting,
        form=written.name,
        calibration=hashlib.sha256(tokens.numpy().tobytes() + str(tokens.shape).encode()).hexdigest()[:16],
        batches=str(at_once),
        software=f"{code_version()} {parts.device(OUTSIDE).type}",
    )
    with alone(out, source):
        names = file_names(written)
        progress, afresh = _standing(out, key, names, parts, -(-len(tokens) // at_once))
        begun = progress.done
        _tell_standing(progress, afresh, tell)
        if not begun:
            clear(out)
            write_progress(out, progress)
        if progress.done < progress.blocks:
            progress = _blocks(written, out, names, tokens, at_once, make, progress, tell)
        if not progress.finished:
            finish(written, out, names, progress)
    return Streamed(
        folder=out,
        blocks=progress.blocks,
        resumed_at=begun,
        afresh=afresh,
        layers=progress.layers,
        form=written.name,
        not_packed=not_packed,
        bytes_before=sum(place.end - place.start for place in parts.shards.places.values()),
        bytes_after=weight_bytes(out, names),
    )


def _standing(out: Path, key: Key, names: Sequence[str], parts: Parts, batches: int) -> tuple[Progress, str]:
    """How far an earlier run came, and why this one starts afresh where it cannot go on from there."""
    progress, afresh = read_progress(out, key, len(parts.blocks))
    if not afresh:
        afresh = broken(out, names, progress, batches) or gone(parts.blocks, progress.done)
        progress = Progress(key=key, blocks=len(parts.blocks)) if afresh else progress
    return progress, afresh


def _tell_standing(progress: Progress, afresh: str, tell: Callable[[str], None]) -> None:
    if afresh:
        tell(f"starts afresh: {afresh}")
    if progress.finished:
        tell("is done already")
    elif progress.done:
        tell(f"goes on after block {progress.done} of {progress.blocks}")


def _blocks(
    form: Dense,
    out: Path,
    names: Sequence[str],
    tokens: Tensor,
    at_once: int,
    make: Make,
    progress: Progress,
    tell: Callable[[str], None],
) -> Progress:
    parts = form.parts
    form.begin(make({}), tokens)
    batches = _batches(parts, out / ACTIVATIONS, tokens, at_once, progress.done)
    left = range(progress.done, progress.blocks)
    weights = fetched(parts.shards, [parts.names[n] for n in left], [parts.device(n) for n in left])
    for number, tensors in zip(left, weights, strict=True):
        parts.fill(number, tensors)
        found = _matrices(parts, number)
        method = form.method(make(readers_together(found)), number, found)
        changed = done_by_path(compress([parts.blocks[number]], batches, {0: found}, method, parts.config))
        layers = form.write(out / names[number], number, changed)
        parts.shards.let_go(parts.names[number])
        parts.free(number)
        return_freed()
        update = {"done": number + 1, "layers": progress.layers + layers}
        progress = progress.model_copy(update=update)
        write_progress(out, progress)
        drop(batches, number)
        tell(f"block {number + 1} of {progress.blocks}")
    return progress


def _batches(parts: Parts, folder: Path, tokens: Tensor, at_once: int, block: int) -> list[Batch]:
    """The batches before a block. What blocks are called with besides is made anew by a run that goes on."""
    folder.mkdir(exist_ok=True)
    parts.fill(OUTSIDE, {name: parts.shards.read(name) for name in parts.names[OUTSIDE]})
    batches: list[Batch] = []
    for number, ids in enumerate(tokens.split(at_once)):  # type: ignore[no-untyped-call]
        entry = enter(parts.base, partial(parts.base, input_ids=ids.to(parts.device(OUTSIDE)), use_cache=False))
        spill = spilled(tokens.numel(), entry.hidden.shape[-1], parts.devices)
        batches.append(Batch(entry, folder, number, block, len(parts.blocks), spill))
    parts.free(OUTSIDE)
    return_freed()
    return batches


def _at_once(tokens: Tensor, parts: Parts, found: Sequence[Matrix], method: Method) -> int:
    """Windows that pass a block together, as memory allows."""
    windows, length = tokens.shape
    experts = getattr(parts.config.get_text_config(), "num_experts_per_tok", None) or 0
    widest = max(layers_width(parts.blocks, experts), scores_width(_heads(parts), length, length))
    inputs = max((m.read().shape[1] for m in found), default=0) if method.products else 0
    held = max(held_bytes(block.parameters(), inputs) for block in parts.blocks)
    return windows_at_once(windows, length, widest, method, parts.devices, 2 * held)  # and a block on its way


def _heads(parts: Parts) -> int:
    """Heads whose scores may be held at once.

    On the CPU torch's attention holds none. On CUDA no kernel but the plain one, which does, takes float32 where
    queries share heads. Other models are counted with those.
    """
    if all(device.type == "cpu" for device in parts.devices):
        return 0
    found = getattr(parts.config.get_text_config(), "num_attention_heads", None)
    return max(found) if isinstance(found, list) else int(found or 0)


def _matrices(parts: Parts, number: int) -> list[Matrix]:
    """The dense layers and experts of a block, as the engine takes them."""
    paths = layer_paths(parts.blocks[number], f"{parts.path}.{number}")
    return chosen_matrices(parts.model, parts.path, paths).get(number, [])


def _check_tokens(tokens: Tensor, parts: Parts) -> None:
    if tokens.dim() != 2 or tokens.is_floating_point() or not tokens.numel():
        shape = "×".join(map(str, tokens.shape))
        raise InputError("calibration", shape, "are no token windows", "give integers [windows, length]")
    embeddings: Any = parts.model.get_input_embeddings()
    known, low, high = embeddings.weight.shape[0], int(tokens.min()), int(tokens.max())
    if low < 0 or high >= known:
        problem = f"vocabulary mismatch: the model knows tokens 0 to {known - 1}"
        token = f"token {low if low < 0 else high}"
        raise InputError("calibration", token, problem, "tokenize with the model's own tokenizer")
    longest = longest_of(parts.config)
    if longest and tokens.shape[1] > longest:
        problem = f"windows are longer than the {longest:,} tokens that the model reads"
        raise InputError("calibration", f"{tokens.shape[1]:,} tokens", problem, "give shorter windows")

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backends.memory import return_freed, return_large_arrays
from backends.models import default_devices
from backends.oneshot.blocks import enter
from backends.oneshot.engine import Done, chosen_matrices, compress
from backends.oneshot.feed import windows_at_once
from backends.oneshot.fetch import fetched
from backends.oneshot.matrices import Matrix, is_dense
from backends.oneshot.methods import Method
from backends.oneshot.output import ACTIVATIONS, alone, broken, clear, file_names, fingerprint, finish
from backends.oneshot.parts import OUTSIDE, Parts
from backends.oneshot.progress import Key, Layer, Progress, read_progress, write_progress
from backends.oneshot.readers import readers_together
from backends.oneshot.shards import write_shard
from backends.oneshot.spill import Batch, drop, spilled
from backends.store import code_version
from knowledge.configs import longest_of
from knowledge.values import InputError

Make = Callable[[Mapping[str, Sequence[Matrix]]], Method]  # of a block, from which of its matrices read the same
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)  # of a few taps, as state-space models have them: they stay as they are


@dataclass(frozen=True)
class Streamed:
    """A finished folder, and how it came about."""

    folder: Path
    blocks: int
    resumed_at: int  # blocks that an earlier run had done
    afresh: str  # why an earlier run's blocks were not used; empty where there were none, or they were
    layers: tuple[Layer, ...]


def compress_folder(
    source: Path,
    out: Path,
    tokens: Tensor,
    make: Make,
    setting: str,
    *,
    devices: Sequence[torch.device] = (),
    at_once: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Streamed:
    """Compress the dense layers and experts of every block of a Hugging Face folder into another such folder.

    `tokens`: [windows, length]. `setting` names what `make` makes, all parameters included: a run that is begun again
    with the same goes on after the last finished block. `devices`: what computes, blocks taking them in turn; by
    default every GPU there is. `at_once`: windows that pass a block together, by default what memory allows. `tell`
    gets a line per block.

    Raises InputError: a shard missing or truncated, a weight missing or of another shape, tokens that the model does
    not know or too few for a Hessian, activations that are not finite, another run at work there; DiskFull.
    """
    return_large_arrays()
    parts = Parts(source, devices or default_devices())
    _check_tokens(tokens, parts)
    tokens = tokens.cpu().long()
    method = make(readers_together(_matrices(parts, 0)))
    widest = max(max(p.shape[-2:]) for p in parts.blocks.parameters() if p.dim() > 1)
    windows, length = tokens.shape
    at_once = at_once or windows_at_once(windows, length, widest, method, parts.devices)
    key = Key(
        source=fingerprint(source, parts.shards.files),
        method=setting,
        calibration=hashlib.sha256(tokens.numpy().tobytes() + str(tokens.shape).encode()).hexdigest()[:16],
        batches=str(at_once),
        software=f"{code_version()} {parts.device(OUTSIDE).type}",
    )
    with alone(out, source):
        progress, afresh = read_progress(out, key, len(parts.blocks))
        names = file_names(parts)
        if not afresh and (lost := broken(out, names, progress, -(-windows // at_once))):
            progress, afresh = Progress(key=key, blocks=len(parts.blocks)), lost
        begun = progress.done
        if afresh:
            tell(f"starts afresh: {afresh}")
        if begun:
            tell("is done already" if progress.finished else f"goes on after block {begun} of {progress.blocks}")
        else:
            clear(out)
            write_progress(out, progress)
        if progress.done < progress.blocks:
            progress = _blocks(parts, out, names, tokens, at_once, make, progress, tell)
        if not progress.finished:
            finish(parts, out, names, progress)
    return Streamed(out, progress.blocks, begun, afresh, progress.layers)


def _blocks(
    parts: Parts,
    out: Path,
    names: Sequence[str],
    tokens: Tensor,
    at_once: int,
    make: Make,
    progress: Progress,
    tell: Callable[[str], None],
) -> Progress:
    batches = _batches(parts, out / ACTIVATIONS, tokens, at_once, progress.done)
    left = range(progress.done, progress.blocks)
    weights = fetched(parts.shards, [parts.names[n] for n in left], [parts.device(n) for n in left])
    for number, tensors in zip(left, weights, strict=True):
        parts.fill(number, tensors)
        found = _matrices(parts, number)
        method = make(readers_together(found))
        block = parts.blocks[number]
        layers = _layers(compress([block], batches, {0: found}, method, parts.config))
        weight_ids = {id(matrix.place.weight) for matrix in found}
        prefix = f"{parts.path}.{number}"
        changed = [name for name, one in block.named_parameters(prefix=prefix) if id(one) in weight_ids]
        write_shard(out / names[number], parts.written(number, changed))
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


def _matrices(parts: Parts, number: int) -> list[Matrix]:
    """The dense layers and experts of a block, as the engine takes them."""
    prefix, block = f"{parts.path}.{number}", parts.blocks[number]
    modules = [(path, part) for path, part in block.named_modules(prefix=prefix) if not isinstance(part, CONVOLUTIONS)]
    paths = [path for path, part in modules if is_dense(part)]
    paths += [f"{path}.{name}" for path, part in modules for name, one in part._parameters.items() if _is_stack(one)]
    return chosen_matrices(parts.model, parts.path, paths).get(number, [])


def _is_stack(parameter: Tensor | None) -> bool:
    """Whether it holds a matrix per expert."""
    return parameter is not None and parameter.dim() == 3


def _layers(done: Iterator[Done]) -> tuple[Layer, ...]:
    """What became of each layer, without the weights."""
    found: dict[str, list[tuple[int, float]]] = {}
    for one in done:
        found.setdefault(one.matrix.path, []).append((one.tokens, one.outcome.damping))
    return tuple(
        Layer(
            path=path,
            matrices=len(each),
            unread=sum(not tokens for tokens, _ in each),
            fewest_tokens=min(tokens for tokens, _ in each),
            damping=max(damping for _, damping in each),
        )
        for path, each in found.items()
    )


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

"""One-shot compression, a block at a time: each matrix is changed once, by what it reads after all before it.

A batch that passes a block stops at every matrix: what it reads is summed up, the matrix is changed, and the pass goes
on with the changed one. So nothing is computed twice, and errors of what came before are seen. Data that do not fit
into one batch pass each block twice: once to be summed up, once changed. Norms settle after a few thousand tokens: a
method that wants no more, and before anything is changed, sums up a share of the batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backends.oneshot.blocks import Entry, counted
from backends.oneshot.matrices import Matrix, matrices, watched
from backends.oneshot.methods import Method
from backends.oneshot.statistics import Inputs
from backends.oneshot.sums import LastRead, Sums, by_key, summed

BEFORE_SHARE, BEFORE_TOKENS = 8, 4096  # what is summed up for norms: an eighth of the batches, and so many tokens


@dataclass(frozen=True)
class Done:
    """One matrix that the engine changed. Its weight stands in the model, and not here beside it."""

    matrix: Matrix
    tokens: int  # that it read; 0 where it was changed by its size alone
    damping: float = 0.0  # this and the others: see `Outcome`
    scales: Tensor | None = None
    zeros: Tensor | None = None
    factors: Tensor | None = None


def done_by_path(done: Iterable[Done]) -> dict[str, list[Done]]:
    """The matrices of each layer."""
    found: dict[str, list[Done]] = {}
    for one in done:
        found.setdefault(one.matrix.path, []).append(one)
    return found


def compress(
    blocks: Sequence[nn.Module],
    entries: Sequence[Entry],
    chosen: Mapping[int, Sequence[Matrix]],
    method: Method,
    config: Any,
) -> Iterator[Done]:
    """Change the chosen matrices of each block, in place, in order.

    `entries` are the batches as they enter the first block, and end as they leave the last. Raises InputError where an
    activation is not finite, or the tokens are too few for a Hessian, naming the layer.
    """
    with torch.no_grad():
        for number, block in enumerate(blocks):
            found = chosen.get(number, ())
            if len(entries) == 1 and not method.before:
                yield from _one_pass(block, found, entries[0], number, method, config)
            else:
                yield from _two_passes(block, found, entries, number, method, config)


def _one_pass(
    block: nn.Module, found: Sequence[Matrix], entry: Entry, number: int, method: Method, config: Any
) -> list[Done]:
    todo = by_key(found)
    done: list[Done] = []
    last = LastRead()

    def see(module: nn.Module, name: str, expert: int | None, x: Tensor, tokens: Tensor | None) -> Tensor:
        matrix = todo.pop((id(module), name, expert), None)
        if matrix is None:
            return x
        inputs = last.inputs_of(x)
        if inputs is None:
            inputs = last.keep(x, Inputs(x.shape[-1]))
            if method.reads:
                inputs.add(counted(x, entry.mask, tokens), method.products)
        done.append(_changed(matrix, inputs, method))
        return x

    with watched(block, config, see):
        entry.hidden = entry.through(block, number)
    return done + [_changed(matrix, Inputs(matrix.read().shape[1]), method) for matrix in todo.values()]


def _two_passes(
    block: nn.Module, found: Sequence[Matrix], entries: Sequence[Entry], number: int, method: Method, config: Any
) -> list[Done]:

    def read(sums: Sums) -> None:
        with watched(block, config, sums.see):
            for entry in _seen(entries, method):
                sums.mask = entry.mask
                entry.through(block, number)

    done = changed_by_sums(summed(found, method, read) if method.reads else Sums(found, method))
    for entry in entries:
        entry.hidden = entry.through(block, number)
    return done


def _seen(entries: Sequence[Entry], method: Method) -> Iterator[Entry]:
    """The batches that are summed up."""
    tokens = 0
    for count, entry in enumerate(entries):
        if method.before and BEFORE_SHARE * count >= len(entries) and tokens >= BEFORE_TOKENS:
            return
        tokens += entry.tokens
        yield entry


def changed_by_sums(sums: Sums, in_blocks: bool = True) -> list[Done]:
    """Change every matrix by what was summed up for it. Outside of blocks, layers may read one vector a sample."""
    return [_changed(matrix, sums.take(key), sums.method, in_blocks) for key, matrix in sums.todo.items()]


def _changed(matrix: Matrix, inputs: Inputs, method: Method, in_blocks: bool = True) -> Done:
    """Change one matrix by what it read, or by its size where it read no token (as an expert may), or zeros alone."""
    weight, tokens = matrix.read().float(), inputs.tokens
    if method.reads:
        if not tokens or bool(inputs.idle.all()):
            tokens, inputs = 0, Inputs.alike(inputs.width, weight.device)
        inputs.check(matrix.name)
        if method.inverse and in_blocks and matrix.expert is None:
            inputs.check_tokens(matrix.name)
    inputs.routed = matrix.expert is not None
    outcome = method.apply(matrix.path, weight, inputs)
    matrix.write(outcome.weight)
    return Done(matrix, tokens, outcome.damping, outcome.scales, outcome.zeros, outcome.factors)


def chosen_matrices(module: nn.Module, blocks_path: str, paths: Sequence[str]) -> dict[int, list[Matrix]]:
    """The matrices behind paths of the layer table by the block that they stand in; others are left out."""
    found: dict[int, list[Matrix]] = {}
    for path in paths:
        if path.startswith(f"{blocks_path}."):
            number = int(path.removeprefix(f"{blocks_path}.").split(".", 1)[0])
            found.setdefault(number, []).extend(matrices(module, path))
    return found

"""A model block by block: what enters the first, and what each is called with besides."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backends.blocks import find_blocks
from knowledge.faults import first_line
from knowledge.values import InputError

REMEDY = "use a technique that needs no blocks, such as magnitude"
RETURNED = (0, 2, 1, 3, 4)  # what blocks may return: a tensor, or a tuple of so many parts, hidden states first


@dataclass
class Entry:
    """A batch on its way through the blocks."""

    hidden: Tensor  # [batch, time, width]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]  # of each block: the arguments after `hidden`
    mask: Tensor | None = None  # [batch, time], False where a token is padding

    @property
    def tokens(self) -> int:
        """How many there are, padding included."""
        return self.hidden.shape[:2].numel()

    def through(self, block: nn.Module, number: int) -> Tensor:
        """What a block makes of it: the hidden states, which come first where it returns more."""
        args, kwargs = self.calls[number]
        output = block(self.hidden, *args, **kwargs)
        hidden = output[0] if isinstance(output, tuple | list) else output
        if not isinstance(hidden, Tensor):
            raise InputError("model", type(block).__name__, "returns no hidden states first", REMEDY)
        return hidden


def gone(blocks: nn.ModuleList | nn.Sequential, done: int) -> str:
    """What a run that goes on after `done` blocks lacks: keys and values that later blocks read of earlier ones.

    Gemma 3n and 4 hand those on beside hidden states.
    """
    keep, read = "store_full_length_kv", "is_kv_shared_layer"
    kept = any(getattr(part, keep, False) for block in list(blocks)[:done] for part in block.modules())
    if kept and any(getattr(part, read, False) for block in list(blocks)[done:] for part in block.modules()):
        return "later blocks read keys and values of those that are done, which are gone"
    return ""


def counted(x: Tensor, mask: Tensor | None, tokens: Tensor | None = None) -> Tensor:
    """What a layer reads, without padding. x: [batch, time, in] or [batch · time, in]  mask: [batch, time]

    With `tokens`, x is [tokens, in]: what an expert reads of the tokens that have these numbers in the batch.
    """
    if mask is not None and tokens is not None:
        return x[mask.flatten()[tokens]]
    if mask is not None and x.shape[:-1] == mask.shape:
        return x[mask]
    if mask is not None and x.shape[:-1] == (mask.numel(),):
        return x[mask.flatten()]
    return x


class _More:
    """Stands for what a block returns beside hidden states, such as the weights of its attention."""


class _Misfit(Exception):
    """Blocks are not called the way in which hidden states go from one to the next."""


class _Recorder(nn.Module):
    """Stands for a block: notes what it is called with, and passes on what enters."""

    def __init__(self, block: nn.Module, number: int, entry: list[Entry], parts: int, model: str) -> None:
        """`parts`: of the tuple that it returns; 0 for a tensor."""
        super().__init__()
        self.number, self.entry, self.parts, self.model = number, entry, parts, model
        self.__dict__["block"] = block  # no child: only its attributes are looked up

    def __getattr__(self, name: str) -> Any:  # models read attributes of their blocks, such as `attention_type`
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first, *others = inspect.signature(self.block.forward).parameters
        hidden, *rest = args or (kwargs.pop(first, None),)
        for name, value in (*zip(others, rest, strict=False), *kwargs.items()):
            if isinstance(value, _More):
                problem = f"block {self.number} reads more of what the one before returns than hidden states: {name}"
                raise InputError("model", self.model, problem, REMEDY)
        if not isinstance(hidden, Tensor):
            raise _Misfit(f"block {self.number} is called with {type(hidden).__name__} instead of hidden states")
        if not self.entry:
            self.entry.append(Entry(hidden, []))
        entry = self.entry[0]
        if self.number != len(entry.calls):
            raise _Misfit(f"block {self.number} is called again, or out of turn")
        if hidden is not entry.hidden and not torch.equal(hidden, entry.hidden):
            raise _Misfit(f"block {self.number} reads something else than what the one before returns")
        entry.calls.append((tuple(rest), kwargs))
        return (hidden, *(_More() for _ in range(self.parts - 1))) if self.parts else hidden


def enter(module: nn.Module, run: Callable[[], object]) -> Entry:
    """What enters the first block while `run` runs the whole model; the blocks themselves are not computed.

    Whether blocks return a tensor or a tuple shows in what the model takes. Raises InputError where hidden states do
    not go from block to block as they are, or a block reads more of what an earlier one returns.
    """
    path, blocks = find_blocks(module, mixed=True)
    model = type(module).__name__
    failed: list[tuple[int, bool, str]] = []  # after so many calls, by our own judgment or the model's, and why
    for parts in RETURNED:
        found: list[Entry] = []
        try:
            _pass_by(blocks, found, parts, model, run)
            calls = len(found[0].calls) if found else 0
            if calls == len(blocks):
                return found[0]
            raise _Misfit(f"{calls} are called")
        except (InputError, MemoryError, torch.AcceleratorError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # over a tuple of the wrong length, models stumble in as many ways as there are
            why = first_line(error)
            failed.append((len(found[0].calls) if found else 0, isinstance(error, _Misfit), why))
    _, _, why = max(failed, key=lambda one: one[:2])
    problem = f"hidden states do not pass its blocks ({len(blocks)} in {path}) one after the other: {why}"
    raise InputError("model", model, problem, REMEDY)


def _pass_by(
    blocks: nn.ModuleList | nn.Sequential, found: list[Entry], parts: int, model: str, run: Callable[[], object]
) -> None:
    """Run the model with a recorder in the place of each block."""
    kept = list(blocks)
    try:
        for number, block in enumerate(kept):
            blocks[number] = _Recorder(block, number, found, parts, model)
        with torch.no_grad():
            run()
    finally:
        for number, block in enumerate(kept):
            blocks[number] = block

"""A model block by block: what enters the first, and what each is called with besides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backends.blocks import find_blocks
from knowledge.values import InputError

REMEDY = "use a technique that needs no blocks, such as magnitude"


@dataclass
class Entry:
    """A batch on its way through the blocks."""

    hidden: Tensor  # [batch, time, width]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]  # of each block: the arguments after `hidden`
    mask: Tensor | None = None  # [batch, time], False where a token is padding

    def through(self, block: nn.Module, number: int) -> Tensor:
        """What a block makes of it."""
        args, kwargs = self.calls[number]
        output = block(self.hidden, *args, **kwargs)
        assert isinstance(output, Tensor)
        return output


def counted(x: Tensor, mask: Tensor | None) -> Tensor:
    """What a layer reads, without padding. x: [batch, time, in] or [batch · time, in]  mask: [batch, time]

    Experts read the tokens that are sent to them, padding among them: which they are is not known here.
    """
    if mask is not None and x.shape[:-1] == mask.shape:
        return x[mask]
    if mask is not None and x.shape[:-1] == (mask.numel(),):
        return x[mask.flatten()]
    return x


class _Recorder(nn.Module):
    """Stands for a block: notes what it is called with, and passes on what enters."""

    def __init__(self, block: nn.Module, entry: list[Entry]) -> None:
        super().__init__()
        self.entry = entry
        self.__dict__["block"] = block  # no child: only its attributes are looked up

    def __getattr__(self, name: str) -> Any:  # models read attributes of their blocks, such as `attention_type`
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.pop("hidden_states")
        if not self.entry:
            self.entry.append(Entry(hidden, []))
        if hidden.shape != self.entry[0].hidden.shape:  # the model takes the first part of what a block returns
            raise InputError("model", type(self.block).__name__, "returns more than one tensor", REMEDY)
        self.entry[0].calls.append((args[1:], kwargs))
        return hidden


def enter(module: nn.Module, run: Callable[[], object]) -> Entry:
    """What enters the first block while `run` runs the whole model; the blocks themselves are not computed.

    Raises InputError where the model does not call its blocks one after the other.
    """
    path, blocks = find_blocks(module)
    found: list[Entry] = []
    kept = list(blocks)
    try:
        for number, block in enumerate(kept):
            blocks[number] = _Recorder(block, found)
        with torch.no_grad():
            run()
    finally:
        for number, block in enumerate(kept):
            blocks[number] = block
    if not found or len(found[0].calls) != len(kept):
        called = len(found[0].calls) if found else 0
        problem = f"called {called} of its {len(kept)} blocks ({path}), one after the other"
        raise InputError("model", type(module).__name__, problem, REMEDY)
    return found[0]

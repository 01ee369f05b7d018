"""What is between two blocks: on disk, so that a run can go on there, and in memory too unless that takes too much."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backends.memory import memory_of
from backends.oneshot.blocks import Entry
from knowledge.files import replacing

SHARE = 0.1  # of the memory that may be taken: more than this is spilled


def spilled(tokens: int, width: int, devices: Iterable[torch.device]) -> bool:
    """Whether the activations of so many tokens are left on disk while other batches pass."""
    return 4 * tokens * width > SHARE * memory_of(devices)


def moved(value: Any, device: torch.device) -> Any:
    """The same with every tensor in it, however deep in tuples, lists and mappings, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(moved(one, device) for one in value)
    if type(value) is dict:
        return {key: moved(one, device) for key, one in value.items()}
    if hasattr(value, "to"):  # a library's own mapping, such as the keys that blocks share
        return value.to(device)
    return value


class Batch(Entry):
    """A batch that keeps what enters each block in a file of its own."""

    def __init__(self, entry: Entry, folder: Path, number: int, block: int, blocks: int, spill: bool) -> None:
        """`entry` is what enters the first block; a later `block` goes on with what an earlier run left before it."""
        self.folder, self.number, self.block, self.blocks, self.spill = folder, number, block, blocks, spill
        self.shape, self.device = entry.hidden.shape, entry.hidden.device
        self.calls, self.mask = entry.calls, entry.mask
        if block:
            self._hidden = self._mapped() if spill else self._mapped().clone()
        else:
            self._keep(entry.hidden)

    def file(self, block: int) -> Path:
        """Of what enters a block, float32 [batch, time, width]."""
        return self.folder / f"block-{block}-batch-{self.number}.bin"

    @property
    def hidden(self) -> Tensor:
        """What enters the block that comes next."""
        return self._hidden.to(self.device)

    @hidden.setter
    def hidden(self, value: Tensor) -> None:
        self.calls[self.block] = ((), {})  # what it was called with is on its device
        self.block += 1
        if self.block < self.blocks:  # nothing reads what leaves the last
            self._keep(value)

    @property
    def tokens(self) -> int:
        """How many there are, without reading what was spilled."""
        return self.shape[:2].numel()

    def _keep(self, value: Tensor) -> None:
        with replacing(self.file(self.block)) as temporary, temporary.open("wb") as file:
            file.write(value.detach().float().cpu().contiguous().numpy().data)
        self._hidden = self._mapped() if self.spill else value

    def _mapped(self) -> Tensor:
        """A shared map of the file: its pages are the page cache's."""
        path = str(self.file(self.block))
        return torch.from_file(path, shared=True, size=self.shape.numel()).view(self.shape)

    def through(self, block: nn.Module, number: int) -> Tensor:
        """What the block that comes next makes of it, whatever its number among those that the engine was given.

        The batch comes to the block, which may stand on another device than the one before.
        """
        self.device = next(block.parameters()).device
        self.calls[self.block] = moved(self.calls[self.block], self.device)
        return super().through(block, self.block)


def drop(batches: Sequence[Batch], block: int) -> None:
    """Remove what entered a block that is done."""
    for batch in batches:
        batch.file(block).unlink(missing_ok=True)

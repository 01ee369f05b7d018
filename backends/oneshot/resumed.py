"""A model run again and again from one of its blocks on: what comes before is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from backends.models import LoadedModel


class Resumed:
    """A model on a few batches, from one of its blocks on: those before it give what they gave."""

    def __init__(self, model: LoadedModel, batches: Sequence[dict[str, Tensor]], blocks: Sequence[nn.Module]) -> None:
        self.model, self.batches, self.blocks = model, batches, blocks
        self.number = 0  # of blocks that are not computed
        self.given: list[Any] = [None] * len(batches)  # what the last of them gave

    def outputs(self, at: int) -> Tensor:
        """The model's outputs on one of the batches."""
        with _replayed(self.blocks[: self.number], self.given[at]):
            return self.model.forward(self.batches[at])

    def advance(self, number: int) -> None:
        """Leave out the blocks before this one from now on, as they are now."""
        if number <= self.number:
            return
        found = []
        for at in range(len(self.batches)):
            with _seen(self.blocks[number - 1]) as seen:
                self.outputs(at)
            found.append(seen[-1])
        self.number, self.given = number, found


@contextmanager
def _replayed(blocks: Sequence[nn.Module], given: Any) -> Iterator[None]:
    """While open, these blocks are not computed, and return `given`, each time anew: some models add to it in place."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return _copied(given)

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_forward(block, forward))
        yield


def _copied(given: Any) -> Any:
    if isinstance(given, Tensor):
        return given.clone()
    return tuple(map(_copied, given)) if isinstance(given, tuple) else given


@contextmanager
def _forward(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own


@contextmanager
def _seen(block: nn.Module) -> Iterator[list[Any]]:
    """While open, what the block returns."""
    found: list[Any] = []
    handle = block.register_forward_hook(lambda module, args, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()

"""The repeated blocks of a transformer: finding them by structure, watching them, removing some."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from knowledge.values import InputError

BLOCK_COUNTS = ("num_hidden_layers", "depth", "blocks", "num_layers")


def find_blocks(module: nn.Module, mixed: bool = False) -> tuple[str, nn.ModuleList | nn.Sequential]:
    """Path and container of the repeated blocks: the longest list of modules of one type, the outermost among equals.

    With `mixed`, modules of a list may be of several types that have a base of their own in common, as in Jamba.
    Lists of single layers (no children of their own) do not count. Raises InputError where there is none.
    """
    best: tuple[str, nn.ModuleList | nn.Sequential] | None = None
    for path, found in module.named_modules():
        if not isinstance(found, nn.ModuleList | nn.Sequential) or len(found) == 0:
            continue
        alike = _alike(found, mixed) and any(True for _ in found[0].children())
        if alike and (best is None or len(found) > len(best[1])):
            best = path, found
    if best is None:
        name = type(module).__name__
        raise InputError("model", name, "no list of repeated blocks was found", "use a technique for single layers")
    return best


def _alike(found: nn.ModuleList | nn.Sequential, mixed: bool) -> bool:
    types = {type(child) for child in found}
    if len(types) == 1 or not mixed or isinstance(found, nn.Sequential):
        return len(types) == 1
    common = set.intersection(*(set(one.__mro__) for one in types))
    return any(issubclass(one, nn.Module) and one is not nn.Module for one in common)


def drop_blocks(module: nn.Module, dropped: Iterable[int]) -> None:
    """Remove the blocks with these indices; the rest are renumbered for the configuration and the key–value cache.

    Raises ValueError on an index that does not exist, or when no block would be left.
    """
    gone = set(dropped)
    path, blocks = find_blocks(module)
    before = len(blocks)
    if not gone <= set(range(before)) or len(gone) == before:
        raise ValueError(f"cannot drop blocks {sorted(gone)} of {before}")
    kept = [block for index, block in enumerate(blocks) if index not in gone]
    parent, _, name = path.rpartition(".")
    shorter = nn.ModuleList(kept) if isinstance(blocks, nn.ModuleList) else nn.Sequential(*kept)
    setattr(module.get_submodule(parent), name, shorter)
    for index, block in enumerate(kept):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = index  # type: ignore[assignment]
    for config in configurations(module):
        _shorten(config, [i for i in range(before) if i not in gone], before)


def configurations(module: nn.Module) -> list[Any]:
    """Every distinct configuration object in the model."""
    found = {id(c): c for c in (getattr(part, "config", None) for part in module.modules()) if c is not None}
    return list(found.values())


def _shorten(config: Any, kept: Sequence[int], before: int) -> None:
    for name in BLOCK_COUNTS:
        if getattr(config, name, None) == before:
            setattr(config, name, len(kept))
    for name, value in list(vars(config).items()):  # one entry per block, such as `layer_types`
        if isinstance(value, list) and len(value) == before and name.startswith("layer_"):
            setattr(config, name, [value[i] for i in kept])


@contextmanager
def watching(blocks: Iterable[nn.Module], see: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
    """While open, every forward pass calls `see(index, input, output)` for each block, [batch, time, hidden] both."""

    def hook(index: int) -> Callable[..., None]:
        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            see(index, hidden, output[0] if isinstance(output, tuple) else output)

        return after

    handles = [b.register_forward_hook(hook(i), with_kwargs=True) for i, b in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

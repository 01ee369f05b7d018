"""Where a block divides its inputs for nothing: a norm multiplies each channel, and takes the division on itself.

    norm(x) · g ─► W    =    norm(x) · g / f ─► W · f        as long as nothing else reads the norm's output

Whether that holds is tried on a few tokens: channels are halved in the norm and doubled in the matrices behind it, and
the block must return what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backends.oneshot.matrices import Matrix

OFFSETS = (0.0, 1.0)  # norms multiply by their weight, or by 1 + weight
CLOSE = 1e-3  # of the block's output; whatever else reads the norm moves it by far more


@dataclass(frozen=True)
class Norm:
    """A norm that takes divisions."""

    path: str
    module: nn.Module
    offset: float
    kind: torch.dtype  # of its numbers in the file

    @property
    def gain(self) -> Tensor:
        """What it multiplies channels by."""
        return self.module.get_parameter("weight").detach() + self.offset

    def divided(self, factors: Tensor) -> dict[str, Tensor]:
        """Its parameters, by name, with the division in them."""
        found = {f"{self.path}.weight": (self.gain / factors - self.offset).to(self.kind)}
        bias: Any = getattr(self.module, "bias", None)
        return found if bias is None else found | {f"{self.path}.bias": (bias.detach() / factors).to(self.kind)}


class Folds:
    """The norms of a block that take divisions, by the paths of the layers behind them."""

    def __init__(self, norms: Mapping[str, Norm]) -> None:
        self.norms = norms

    def __contains__(self, path: str) -> bool:
        return path in self.norms

    def nearest(self, path: str, factors: Tensor) -> Tensor:
        """The factors [in] that the norm's numbers in the file hold exactly; 1 for a channel that it silences."""
        norm = self.norms[path]
        held = (norm.gain / factors - norm.offset).to(norm.kind).to(norm.gain.dtype) + norm.offset
        found = norm.gain / held
        return torch.where(torch.isfinite(found) & (found > 0), found, torch.ones_like(found))

    def divided(self, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters of all norms, by name, after divisions by the factors of the layers behind them."""
        found: dict[str, Tensor] = {}
        for path, by_channel in factors.items():
            found |= self.norms[path].divided(by_channel)
        return found


@torch.no_grad()
def find_folds(
    block: nn.Module,
    prefix: str,
    run: Callable[[], Tensor],
    found: Iterable[Matrix],
    readers: Mapping[str, Sequence[Matrix]],
    kind: Callable[[str], torch.dtype],
) -> Folds:
    """The norms of a block that take divisions.

    `run` sends a few tokens through the block. `readers` of a path: the matrices that read the same; others read alone.
    `kind` tells a parameter's numbers in the file.
    """
    groups = {id(group[0].place.owner): group for group in readers.values()}
    together = {matrix.path for group in groups.values() for matrix in group}
    groups |= {id(m.place.owner): [m] for m in found if m.expert is None and m.path not in together}
    before, behind = _norms(block, prefix, run, [group[0].place.owner for group in groups.values()])
    norms: dict[str, Norm] = {}
    for owner, (path, module) in behind.items():
        group = groups[owner]
        if len(module.get_parameter("weight")) != group[0].read().shape[1]:
            continue
        for offset in OFFSETS:
            if _same(before, _tried(module, offset, group, run)):
                norm = Norm(path, module, offset, kind(f"{path}.weight"))
                norms |= {matrix.path: norm for matrix in group}
                break
    return Folds(norms)


def _norms(
    block: nn.Module, prefix: str, run: Callable[[], Tensor], layers: Sequence[nn.Module]
) -> tuple[Tensor, dict[int, tuple[str, nn.Module]]]:
    """What the block returns, and by the id of each layer the norm whose output it reads, as it is."""
    written: dict[int, tuple[str, nn.Module, Tensor]] = {}
    behind: dict[int, tuple[str, nn.Module]] = {}

    def wrote(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            written[id(output)] = path, module, output  # kept, so that no other tensor gets its id

        return hook

    def reads(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and (source := written.get(id(args[0]))):
            behind[id(module)] = source[:2]

    norms = [(path, part) for path, part in block.named_modules(prefix=prefix) if _is_norm(part)]
    handles = [part.register_forward_hook(wrote(path)) for path, part in norms]
    handles += [layer.register_forward_pre_hook(reads) for layer in layers]
    try:
        return run(), behind
    finally:
        for handle in handles:
            handle.remove()


def _is_norm(module: nn.Module) -> bool:
    """A module of its own with a number per channel."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 1 and not any(True for _ in module.children())


def _tried(norm: Any, offset: float, group: Sequence[Matrix], run: Callable[[], Tensor]) -> Tensor:
    """What the block returns with every other channel halved in the norm and doubled behind it."""
    share = torch.ones_like(norm.weight)
    share[::2] = 0.5
    held = {name: one.detach().clone() for name, one in norm.named_parameters(recurse=False)}
    try:
        norm.weight.copy_((held["weight"] + offset) * share - offset)
        if "bias" in held:
            norm.bias.copy_(held["bias"] * share)
        for matrix in group:
            matrix.read().mul_(1 / share)
        return run()
    finally:
        for name, one in held.items():
            getattr(norm, name).copy_(one)
        for matrix in group:
            matrix.read().mul_(share)  # powers of two: the very bits of before


def _same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= CLOSE * one.norm())

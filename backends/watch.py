"""One forward pass under observation: how often each weight is used, what the output depends on, which norms fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from backends.models import LoadedModel


@dataclass
class Seen:
    """What one pass of one sample showed, by module path."""

    positions: dict[str, float] = field(default_factory=dict)  # times each weight of the module was used
    folds: dict[str, str] = field(default_factory=dict)  # batch norm -> the layer whose output it reads
    reached: set[int] | None = None  # ids of the parameters that the output depends on; None: unknown

    def reaches(self, weights: Sequence[Tensor]) -> bool:
        """Whether the output depends on any of the weights."""
        return self.reached is None or any(id(w) in self.reached for w in weights)


@contextmanager
def watched(model: LoadedModel, feed: dict[str, np.ndarray]) -> Iterator[Seen]:
    """Run one batch of one sample through the model in evaluation mode; its mode and gradients stay as they were."""
    seen = Seen()
    kept: dict[int, tuple[Tensor, int, str]] = {}
    handles = [
        part.register_forward_hook(_observer(path, seen, kept), with_kwargs=True)
        for path, part in model.module.named_modules()
        if any(True for _ in part.named_parameters(recurse=False))
        or isinstance(part, _BatchNorm)
        or hasattr(part, "rank")
    ]
    was_training = model.module.training
    frozen = [p for p in model.module.parameters() if not p.requires_grad and p.is_floating_point()]
    model.module.eval()
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            output = model.forward({name: torch.from_numpy(array) for name, array in feed.items()})
        seen.reached = _reached(output)
        del output
        kept.clear()
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)
        model.module.train(was_training)


def _observer(path: str, seen: Seen, kept: dict[int, tuple[Tensor, int, str]]) -> Any:
    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        result = output[0] if isinstance(output, tuple) else output
        if not tensors or not isinstance(result, Tensor):
            return
        seen.positions[path] = seen.positions.get(path, 0.0) + _uses(module, tensors, result)
        if isinstance(module, nn.MultiheadAttention):  # reads this layer's weight without calling it
            seen.positions[f"{path}.out_proj"] = seen.positions[path]
        if isinstance(module, _ConvNd | nn.Linear):
            kept[id(result)] = (result, result._version, path)  # held, so that no other tensor gets its id
        elif (
            isinstance(module, _BatchNorm) and (source := kept.get(id(tensors[0]))) and source[1] == tensors[0]._version
        ):
            seen.folds[path] = source[2]

    return after


def _uses(module: nn.Module, inputs: list[Tensor], output: Tensor) -> float:
    """How many times each weight of the module was used: tokens, pixels or time steps."""
    x = inputs[0]
    if isinstance(module, nn.Embedding):
        return 0.0  # a lookup multiplies nothing
    if isinstance(module, _ConvTransposeNd):
        return x.numel() / module.in_channels
    if isinstance(module, _ConvNd):
        return output.numel() / module.out_channels
    if isinstance(module, _BatchNorm | nn.GroupNorm):
        return x.numel() / x.shape[1]
    stack = next((p for p in module.parameters(recurse=False) if p.dim() == 3), None)
    routes = next((t for t in inputs[1:] if not t.is_floating_point()), None)
    if stack is not None and routes is not None:  # hidden [tokens, width], chosen experts [tokens, k]
        return routes.numel() / stack.shape[0]
    return x.numel() / x.shape[-1]


def _reached(output: Tensor) -> set[int] | None:
    """Ids of the parameters in the graph behind `output`."""
    if output.grad_fn is None:
        return None
    found: set[int] = set()
    visited: set[Any] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in visited:
            continue
        visited.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        waiting += [following for following, _ in node.next_functions if following is not None]
    return found

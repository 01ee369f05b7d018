"""How weights of convolutions lie in memory while a network is trained on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from backends.models import LoadedModel


@contextmanager
def channels_last(model: LoadedModel, batch: Mapping[str, Tensor]) -> Iterator[None]:
    """Lay the weights of 2-D convolutions out with the channels of a pixel beside each other, while open.

    oneDNN's gradients of convolutions are faster so. No value is another, and each weight lies as it lay afterwards.
    Left alone are a model on another device and one whose code counts on the usual order of what convolutions give
    (`view` fails on the other), which the gradients of two samples of `batch` tell.
    """
    weights = _weights(model)
    layouts = [weight.stride() for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.detach().contiguous(memory_format=torch.channels_last)
        if weights and not _trains(model, {name: values[:2] for name, values in batch.items()}):
            _restore(weights, layouts)
        yield
    finally:
        _restore(weights, layouts)


def _weights(model: LoadedModel) -> list[nn.Parameter]:
    """Weights of 2-D convolutions that are parameters (not made anew at each step from others) and dense, each once."""
    if model.device.type != "cpu":
        return []
    convolutions = [part for part in model.module.modules() if isinstance(part, nn.Conv2d)]
    found = [conv._parameters.get("weight") for conv in convolutions]
    weights = {id(weight): weight for weight in found if weight is not None}.values()
    return [weight for weight in weights if weight.stride() == torch.empty_like(weight).stride()]  # without gaps


def _restore(weights: list[nn.Parameter], layouts: list[tuple[int, ...]]) -> None:
    for weight, stride in zip(weights, layouts, strict=True):
        if weight.stride() != stride:
            lying = torch.empty_strided(weight.shape, stride, dtype=weight.dtype)
            weight.data = lying.copy_(weight.detach())


def _trains(model: LoadedModel, batch: Mapping[str, Tensor]) -> bool:
    """Whether gradients of the outputs can be taken; weights, statistics, random numbers and modes stay as they are."""
    module, modes = model.module, [(part, part.training) for part in model.module.modules()]
    trained = [p for p in module.parameters() if p.requires_grad]
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.autograd.grad(model.forward(dict(batch)).sum(), trained, allow_unused=True)
    except Exception:  # the code is anybody's: what is wrong in any layout is told by the first step
        return False
    finally:
        for part, training in modes:
            part.training = training
    return True

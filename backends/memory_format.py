"""How weights of convolutions lie in memory while a network is trained on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backends.models import LoadedModel


@contextmanager
def channels_last(model: LoadedModel, batch: Mapping[str, Tensor]) -> Iterator[None]:
    """Lay the weights of 2-D convolutions out with the channels of a pixel beside each other, while open.

    oneDNN's gradients of convolutions are faster so. Values stay as they are, and so does a model on another device,
    one without such convolutions, and one whose code counts on the usual order (`view` fails on the other), which a
    step on two samples of `batch` tells.
    """
    if model.device.type != "cpu" or not any(isinstance(part, nn.Conv2d) for part in model.module.modules()):
        yield
        return
    module: Any = model.module  # torch's annotations do not know this argument alone
    module.to(memory_format=torch.channels_last)
    try:
        if not _trains(model, {name: values[:2] for name, values in batch.items()}):
            module.to(memory_format=torch.contiguous_format)
        yield
    finally:
        module.to(memory_format=torch.contiguous_format)


def _trains(model: LoadedModel, batch: Mapping[str, Tensor]) -> bool:
    """Whether gradients of the outputs can be taken; no weight, statistic or random number is another afterwards."""
    module, was_training = model.module, model.module.training
    trained = [p for p in module.parameters() if p.requires_grad]
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.autograd.grad(model.forward(dict(batch)).sum(), trained, allow_unused=True)
    except RuntimeError:
        return False
    finally:
        module.train(was_training)
    return True

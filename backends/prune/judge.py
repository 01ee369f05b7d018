"""Which calibration samples tell what layers read, and how far outputs go from what they were on others of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from backends.context import Context
from backends.data import Split
from backends.losses import soft_loss, vector_loss
from backends.models import LoadedModel
from backends.oneshot.methods import Method, Outcome
from backends.oneshot.run import calibration_batches

READ_TOKENS = 4096  # that tell what layers read, at least; more where a Hessian is wider
JUDGED_TOKENS = 512  # that a layer is judged on, at least: 2048 choose no better ratios for stdlib-lm and stdlib-gpt2
SAMPLES = 64  # where they hold no tokens
WHOLE = 4  # times as much for the model as a whole, which is judged a few times

Batch = dict[str, Tensor]


def read_batches(model: LoadedModel, context: Context) -> list[Batch]:
    """The calibration samples that tell what layers read: the first ones, in one batch where memory holds it."""
    split = context.data.calibration
    first = split.head(_samples(split, max(READ_TOKENS, int(context.layers.inputs.max()))))
    return _batches(model, context, first)


def judged_batches(model: LoadedModel, context: Context, times: int = 1) -> list[Batch]:
    """The calibration samples that layers are judged on: the last ones, none of those read where there are enough.

    `times` as many for what needs more.
    """
    order = np.arange(len(context.data.calibration))[::-1]
    backwards = context.data.calibration.take(order)
    return _batches(model, context, backwards.head(_samples(backwards, JUDGED_TOKENS * times, SAMPLES * times)))


def _samples(split: Split, tokens: int, samples: int = SAMPLES) -> int:
    """How many of the first samples hold so many tokens without padding; `samples` where they hold none."""
    lengths = [a.shape[1] for a in split.inputs.values() if a.ndim == 2]
    if not lengths:
        return samples
    mask = split.inputs.get("attention_mask")
    held = np.full(len(split), max(lengths)) if mask is None else mask.sum(1)
    return int(np.searchsorted(np.cumsum(held), tokens)) + 1


def _batches(model: LoadedModel, context: Context, split: Split) -> list[Batch]:
    data = dataclasses.replace(context.data, calibration=split)
    reading = Method("", lambda path, weight, inputs: Outcome(weight))
    return calibration_batches(model, dataclasses.replace(context, data=data), reading)


class Judge:
    """How far a model's outputs go from those it gave when the judge came: KL, or 1 − cosine of vectors."""

    def __init__(self, model: LoadedModel, context: Context, times: int = 1) -> None:
        """`times`: see `judged_batches`."""
        self.model, self.batches = model, judged_batches(model, context, times)
        with torch.no_grad():
            self.wanted = [model.forward(batch) for batch in self.batches]

    @property
    def sound(self) -> bool:
        """Whether there is something to compare with."""
        return all(bool(torch.isfinite(wanted).all()) for wanted in self.wanted)

    def loss(self, given: Sequence[Tensor] | None = None) -> float:
        """Of these outputs of the batches, or of those that the model gives now."""
        with torch.no_grad():
            outputs = [self.model.forward(batch) for batch in self.batches] if given is None else given
        each = [self._distance(*both) for both in zip(outputs, self.wanted, self.batches, strict=True)]
        return float(np.average(each, weights=[len(wanted) for wanted in self.wanted]))

    def _distance(self, given: Tensor, wanted: Tensor, batch: Batch) -> float:
        if self.model.output == "embedding":
            return float(vector_loss(given, wanted))
        return float(soft_loss(given, wanted, 1.0, batch.get("attention_mask")))

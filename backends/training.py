"""Gradient steps: one loop for recovery and distillation, deterministic under its seed, masks kept at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backends.data import Split, trimmed
from backends.losses import learnable, objective
from backends.memory_format import channels_last
from backends.models import LoadedModel
from backends.seeds import seeded
from backends.tasks import Task
from knowledge.values import CurvePoint, Diverged, InputError

CURVE_POINTS = 200
TEACHER_CACHE_BYTES = 256 * 2**20
TOKENS_PER_BATCH = 2048
GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01
WARM_UP = 0.1  # share of the steps

Masks = Mapping[str, Tensor]


# -- batches ---------------------------------------------------------------------------------------


def batch_size_for(split: Split) -> int:
    """Samples per step: about 2,048 tokens, at most 64 samples, at least 8 steps an epoch where the data allow it."""
    lengths = [v.shape[1] for v in split.inputs.values() if v.ndim == 2 and v.dtype.kind == "i"]
    by_tokens = max(4, TOKENS_PER_BATCH // max(lengths, default=1))
    return max(1, min(64, by_tokens, math.ceil(len(split) / 8)))


def shuffled(count: int, batch_size: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of each step's samples: a new order every epoch; a single left-over sample joins the batch before it.

    Batch normalization cannot take statistics of one sample.
    """
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        rows = order.permutation(count)
        for start in batch_starts(count, batch_size):
            end = start + batch_size
            yield rows[start : end + 1] if end == count - 1 else rows[start:end]


def batch_starts(count: int, batch_size: int) -> Sequence[int]:
    """First positions of an epoch's batches."""
    starts = list(range(0, count, batch_size))
    return starts[:-1] if len(starts) > 1 and count - starts[-1] == 1 else starts


def tensors(split: Split, rows: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    """The chosen samples on the device; columns that are padding in all of them are cut off at the right."""
    arrays = {name: values[rows] for name, values in split.inputs.items()}
    if split.labels is not None:
        arrays["labels"] = split.labels[rows]
    return {name: torch.from_numpy(np.ascontiguousarray(v)).to(device) for name, v in trimmed(arrays).items()}


class TeacherOutputs:
    """The teacher's outputs on a split: computed once per sample, and kept over epochs where they fit in memory."""

    def __init__(self, teacher: LoadedModel, count: int, length: int, keep: bool) -> None:
        self.teacher, self.count, self.length, self.keep = teacher, count, length, keep
        self.kept: Tensor | None = None
        self.known = torch.zeros(count, dtype=torch.bool)

    @torch.no_grad()
    def __call__(self, rows: np.ndarray, batch: dict[str, Tensor]) -> Tensor:
        """Outputs for the batch of these rows: [batch, classes], [batch, time, vocabulary] or [batch, width]."""
        device = next(iter(batch.values())).device
        chosen = torch.from_numpy(rows)
        if self.kept is not None and bool(self.known[chosen].all()):
            outputs = self.kept[chosen].to(device)
            return outputs[:, : batch["attention_mask"].shape[1]] if outputs.dim() == 3 else outputs
        outputs = self.teacher.forward(batch).to(device)
        if self.keep:
            self._remember(chosen, outputs.cpu())
        return outputs

    def _remember(self, rows: Tensor, outputs: Tensor) -> None:
        if self.kept is None:
            shape = (self.count, *((self.length,) if outputs.dim() == 3 else ()), outputs.shape[-1])
            if math.prod(shape) * outputs.element_size() > TEACHER_CACHE_BYTES:
                self.keep = False
                return
            self.kept = torch.zeros(shape, dtype=outputs.dtype)
        if outputs.dim() == 3:
            self.kept[rows, : outputs.shape[1]] = outputs
        else:
            self.kept[rows] = outputs
        self.known[rows] = True


# -- the loop --------------------------------------------------------------------------------------


def train(
    model: LoadedModel,
    task: Task,
    split: Split,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int | None = None,
    seed: int = 0,
    teacher: LoadedModel | None = None,
    temperature: float = 2.0,
    alpha: float = 1.0,
    masks: Masks | None = None,
) -> tuple[CurvePoint, ...]:
    """Train the model in place on a split and return its loss curve; weights outside the masks stay zero.

    AdamW (arXiv:1711.05101), a one-cycle schedule (arXiv:1708.07120), gradients clipped to norm 1. With a teacher the
    loss is alpha · soft + (1 − alpha) · hard. Dropout stays off: a compressed model underfits before it overfits.
    Raises Diverged when the loss or a weight is no longer finite, InputError when there is nothing to learn from.
    """
    if len(split) == 0:
        raise InputError("train-data", "", "no samples to train on", "give data, or --training none")
    has_labels = learnable(task, split)
    if not has_labels and teacher is None:
        raise InputError("train-data", "", "no labels and no original model to follow", "give labeled data")
    module = model.module
    device = model.device
    size = min(batch_size or batch_size_for(split), len(split))
    total = epochs * len(batch_starts(len(split), size))
    optimizer = torch.optim.AdamW(_groups(module), lr=learning_rate, fused=_fused(module, device))
    loss_of = objective(model, task, has_labels, temperature, alpha)
    guide = None
    if teacher is not None and (alpha > 0 or not has_labels):
        guide = TeacherOutputs(teacher, len(split), _length(split), keep=epochs > 1)
        teacher.module.eval()
    losses = []
    was_training = module.training
    with channels_last(model, tensors(split, np.arange(min(2, len(split))), device)), seeded(seed, device):
        _training_mode(module)
        for step, rows in enumerate(shuffled(len(split), size, epochs, seed)):
            batch = tensors(split, rows, device)
            target = guide(rows, batch) if guide is not None else None
            loss = loss_of(model.forward(batch), batch, target)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise _diverged(step, total, learning_rate)
            _step(optimizer, loss, module, learning_rate * one_cycle(step, total))
            enforce(module, masks)
    module.train(was_training)
    if not all(bool(torch.isfinite(p).all()) for p in module.parameters()):
        raise _diverged(total, total, learning_rate)
    return thinned(losses)


def one_cycle(step: int, total: int) -> float:
    """Share of the learning rate at a step: linear warm-up over a tenth of the steps, then half a cosine to 0."""
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def enforce(module: nn.Module, masks: Masks | None) -> None:
    """Set the weights outside the masks to zero."""
    with torch.no_grad():
        for name, mask in (masks or {}).items():
            module.get_parameter(name).masked_fill_(~mask, 0)


def thinned(losses: Sequence[float], points: int = CURVE_POINTS) -> tuple[CurvePoint, ...]:
    """At most `points` means over windows of equal length, at the window's last step."""
    width = max(1, math.ceil(len(losses) / points))
    windows = [losses[i : i + width] for i in range(0, len(losses), width)]
    ends = [min(i + width, len(losses)) - 1 for i in range(0, len(losses), width)]
    return tuple(CurvePoint(step=end, loss=sum(w) / len(w)) for end, w in zip(ends, windows, strict=True))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, module: nn.Module, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM)
    optimizer.step()


def _groups(module: nn.Module) -> list[dict[str, object]]:
    """Weight decay for matrices, none for biases and norms."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def _fused(module: nn.Module, device: torch.device) -> bool | None:
    """Whether one kernel takes AdamW's step: on a CPU, where all weights are real numbers without gaps between them."""
    trained = [p for p in module.parameters() if p.requires_grad]
    fit = all(p.is_floating_point() and p.stride() == torch.empty_like(p).stride() for p in trained)
    return True if fit and device.type == "cpu" else None  # elsewhere as torch chooses


def _training_mode(module: nn.Module) -> None:
    """Batch statistics and recurrent kernels in training mode, dropout off."""
    module.eval()
    for part in module.modules():
        if isinstance(part, _BatchNorm | nn.RNNBase):
            part.train()


def _length(split: Split) -> int:
    return max((v.shape[1] for v in split.inputs.values() if v.ndim >= 2), default=1)


def _diverged(step: int, total: int, learning_rate: float) -> Diverged:
    return Diverged(
        f"training diverged at step {step} of {total}: the loss is not finite; the stages before this one are kept: "
        f"try a learning rate below {learning_rate / 3:.1g}, or a gentler stage before it"
    )

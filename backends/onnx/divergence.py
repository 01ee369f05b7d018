"""How far the outputs of a file are from those of the float file: the loss that layers, and files, are chosen by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from backends.onnx.observe import calibration_batches
from backends.onnx.session import Batch, completed, open_session
from knowledge.values import RunFailed

if TYPE_CHECKING:
    from backends.context import Context

SAMPLES = 64  # that every layer is judged on, at most
BATCH = 4
TOKENS = 512  # after which no more are looked at: the choice of stdlib-lm's forms from so many loses 3 % more on
# other samples than the choice from those
WHOLE = 4  # times as much that a file is judged on


def has_logits(context: Context) -> bool:
    """Whether outputs are scores of classes or tokens, and not vectors."""
    return context.task.name != "embedding"


@dataclass
class Scale:
    """How much outputs differ, summed over batches; positions that a mask calls padding do not count."""

    logits: bool
    tokens: int = 0
    positions: int = 0  # with a distribution or vector
    energy: float = 0.0

    def add(self, exact: np.ndarray, batch: Batch) -> None:
        """Count what the losses of a batch are a share of."""
        rows = self._rows(exact, batch)
        self.positions += len(rows)
        self.tokens += int(batch["attention_mask"].sum()) if "attention_mask" in batch else len(rows)
        self.energy += float(np.square(rows, dtype=np.float64).sum())

    def loss(self, outputs: np.ndarray, exact: np.ndarray, batch: Batch) -> float:
        """Sum over a batch; infinite where the outputs are not finite."""
        given, wanted = self._rows(outputs, batch), self._rows(exact, batch)
        if not self.logits:
            found = float(np.square(given - wanted, dtype=np.float64).sum())
        else:
            p, q = (F.log_softmax(torch.from_numpy(rows), dim=-1) for rows in (wanted, given))
            found = float((p.exp() * (p - q)).sum(-1, dtype=torch.float64).sum())
        return max(found, 0.0) if np.isfinite(found) else float("inf")

    def share(self, total: float) -> float:
        """A sum as the mean of divergences, or as a share of the squared outputs."""
        return total / (self.positions if self.logits else self.energy)

    def check(self) -> None:
        if not np.isfinite(self.energy) or not self.energy:
            raise RunFailed("the model's outputs on calibration data are not finite, or all 0: no loss can be measured")

    @staticmethod
    def _rows(outputs: np.ndarray, batch: Batch) -> np.ndarray:
        mask = batch.get("attention_mask")
        counted = mask is not None and outputs.shape[:-1] == mask.shape
        rows: np.ndarray = outputs[mask.astype(bool)] if counted and mask is not None else outputs
        return rows.reshape(-1, outputs.shape[-1])


def file_loss(path: Path, narrow: Path, context: Context) -> float:
    """What the outputs of a file lose against those of the float file, as `layer_losses` counts it, on more samples."""
    first, second = (open_session(one, context.workload.threads) for one in (path, narrow))
    output, total, lost = first.get_outputs()[0].name, Scale(has_logits(context)), 0.0
    for batch in calibration_batches(context, WHOLE * SAMPLES, BATCH):
        exact, given = (session.run([output], completed(batch, session))[0] for session in (first, second))
        total.add(exact, batch)
        lost += total.loss(given, exact, batch)
        if total.tokens >= WHOLE * TOKENS:
            break
    total.check()
    return total.share(lost)

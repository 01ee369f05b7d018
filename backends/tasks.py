"""What a model is for, and how well it does it: a loss to train on and a metric to judge by.

causal-lm                 perplexity (%)     | text-, image-, sequence-classification   accuracy, f1 (pp)
embedding   cosine to the original (%), spearman on pairs (%) | fidelity   agreement (pp), kl (pp)
any task    module:function(outputs, labels) -> float, the user's own
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from backends import metrics
from backends.metrics import IGNORED, Array
from knowledge.sources import is_function
from knowledge.tasks import METRICS, check_metric, check_task
from knowledge.values import InputError, Quality

if TYPE_CHECKING:
    from backends.data import Split
    from backends.models import Predict

EVALUATION_BATCH = 32
BATCH_TOKENS = 4096  # of one batch that is scored: logits are as wide as the vocabulary
WORST_LOSS = 50.0  # nats per token: a broken model's perplexity stays a finite number

Score = Callable[[Array, Any], float]  # outputs, labels or reference -> value


@dataclass(frozen=True)
class Metric:
    """A score of the concatenated outputs against the labels, or against the original model's outputs."""

    name: str
    score: Score
    unit: Literal["pp", "%"] = "pp"
    higher_is_better: bool = True
    needs_reference: bool = False


ACCURACY = Metric("accuracy", metrics.accuracy)
F1 = Metric("f1", metrics.macro_f1)
COSINE = Metric("cosine", metrics.mean_cosine, unit="%", needs_reference=True)
SPEARMAN = Metric("spearman", metrics.pair_spearman, unit="%")
AGREEMENT = Metric("agreement", metrics.agreement, needs_reference=True)
# the original's own value is 0, so a relative loss would mean nothing: counted in hundredths of a nat
KL = Metric("kl", metrics.divergence, higher_is_better=False, needs_reference=True)
# scored batch by batch, because the logits of a whole split need not fit in memory
PERPLEXITY = Metric(
    "perplexity", lambda outputs, labels: _perplexity([metrics.token_loss(outputs, labels)]), "%", False
)


@dataclass(frozen=True)
class Task:
    """A task under one metric."""

    name: str
    judge: Metric

    @property
    def metric(self) -> str:
        return self.judge.name

    @property
    def unit(self) -> Literal["pp", "%"]:
        return self.judge.unit

    @property
    def higher_is_better(self) -> bool:
        return self.judge.higher_is_better

    @property
    def needs_reference(self) -> bool:
        """Whether `evaluate` needs the original model's outputs on the same split."""
        return self.judge.needs_reference

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Training loss against the batch's "labels"; raises InputError where there are none."""
        if "labels" not in batch:
            raise InputError(
                "data", self.name, "has no labels to train on", "give labels, or distill from the original"
            )
        labels = batch["labels"].to(outputs.device)
        if self.name == "causal-lm":
            return F.cross_entropy(outputs[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        if self.name == "embedding":
            cosines = F.cosine_similarity(outputs[0::2], outputs[1::2], dim=-1)
            return F.mse_loss(cosines, labels[0::2].to(cosines.dtype))
        if outputs.dim() == 3:  # fidelity of a language model
            return F.cross_entropy(outputs[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        return F.cross_entropy(outputs, labels)

    def evaluate(self, predict: Predict, split: Split, reference: Array | None = None) -> Quality:
        """Judge outputs on a split; `reference` holds the original model's where the metric needs them.

        Raises InputError for an empty split, missing labels, or a user's metric that fails.
        """
        if not len(split):
            raise InputError("data", self.name, "there are no samples to judge on", "give --eval-data")
        if self.needs_reference and reference is None:
            raise ValueError(f"{self.metric} needs the original model's outputs")
        if not self.needs_reference and split.labels is None:
            raise InputError("data", self.name, f"{self.metric} needs labels", "give labels, or --task fidelity")
        if self.judge is PERPLEXITY:
            length = next(iter(split.inputs.values())).shape[1]
            size = min(EVALUATION_BATCH, max(1, BATCH_TOKENS // length))
            value = _perplexity(metrics.token_loss(predict(batch), batch["labels"]) for batch in split.batches(size))
        else:
            outputs = reference_outputs(predict, split)
            value = self.judge.score(np.nan_to_num(outputs), reference if self.needs_reference else split.labels)
        return Quality(metric=self.metric, value=value, higher_is_better=self.higher_is_better, unit=self.unit)


BY_NAME = {metric.name: metric for metric in (ACCURACY, F1, COSINE, SPEARMAN, AGREEMENT, KL, PERPLEXITY)}


def task_for(name: str, metric: str = "") -> Task:
    """A task under its own metric or the one named; raises InputError with the nearest names for an unknown one."""
    check_task(name)
    check_metric(name, metric)
    return Task(name, users_metric(metric) if is_function(metric) else BY_NAME[metric or METRICS[name][0]])


def users_metric(path: str) -> Metric:
    """The user's own `module:function(outputs, labels) -> float`, called with the whole split's arrays.

    The function's attributes `unit` ("%" unless set to "pp") and `higher_is_better` (True) say how its loss counts.
    Raises InputError when it cannot be imported, fails, or returns no finite number.
    """
    function = import_named("metric", path)

    def score(outputs: Array, labels: Any) -> float:
        try:
            value = float(function(outputs, labels))
        except Exception as error:  # the user's code may raise anything
            raise InputError("metric", path, f"failed: {type(error).__name__}: {error}", "mend the function") from error
        if not math.isfinite(value):
            raise InputError("metric", path, f"returned {value}", "return a finite number")
        return value

    unit: Any = getattr(function, "unit", "%")
    if unit not in ("pp", "%"):
        raise InputError("metric", path, f"its unit is {unit!r}", 'set it to "pp" or "%"')
    return Metric(path, score, unit, bool(getattr(function, "higher_is_better", True)))


def import_named(field: str, path: str) -> Callable[..., Any]:
    """The callable at `package.module:name`, the working directory included; raises InputError where there is none."""
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # console scripts do not look there by themselves
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:  # importing runs the user's code, which may raise anything
        remedy = "run where the module can be imported, or mend it"
        raise InputError(field, path, f"cannot be imported: {type(error).__name__}: {error}", remedy) from error
    if not callable(found):
        raise InputError(field, path, f"{module_name} has no function {name!r}", "name a function in it")
    return cast(Callable[..., Any], found)


def reference_outputs(predict: Predict, split: Split) -> Array:
    """A model's outputs on a whole split, concatenated. [n, ...]"""
    return np.concatenate([predict(batch) for batch in split.batches(EVALUATION_BATCH)])


def _perplexity(losses: Iterable[tuple[float, int]]) -> float:
    """exp of the mean loss over (sum, tokens) of batches."""
    sums, counts = zip(*losses, strict=True)
    mean = sum(sums) / max(sum(counts), 1)
    return math.exp(min(mean, WORST_LOSS) if math.isfinite(mean) else WORST_LOSS)

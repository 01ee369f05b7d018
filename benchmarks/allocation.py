"""What an allocation of zeros gains over one ratio, and what a budget of loss leads to, on language models.

python -m benchmarks.allocation [--models zoo:stdlib-lm,zoo:stdlib-gpt2] [--techniques wanda,sparsegpt]
    [--ratios 60,70] [--losses 0.01,0.1] [--json]

`difference` is the mean loss of windows with the allocation less that with one ratio, and `plus_minus` its 95 %
interval, in pairs: an allocation helps where their sum is below 0. `divergence` is the mean divergence from the
original model's distributions on the same windows, which no layer was judged on: near `max_loss`, where there
is one. `measured` counts runs of the model that the losses of its layers took: 0 where they were known.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.context import Context
from backends.losses import soft_loss
from backends.models import LoadedModel
from backends.oneshot.matrices import matrices
from backends.prune.by_inputs import apply
from backends.prune.sensitivity import layer_curves
from backends.sources import open_source
from backends.store import Store
from benchmarks.show import show
from knowledge.techniques.prune_once import OneShotPruning, SparseGpt, Wanda
from knowledge.values import Workload

TECHNIQUES: dict[str, type[OneShotPruning]] = {"wanda": Wanda, "sparsegpt": SparseGpt}
ALLOCATIONS = ("uniform", "outliers", "sensitivity")
BATCH = 16


class Bench:
    """A language model, its windows, and a store that is empty at first."""

    def __init__(self, name: str, store: Store) -> None:
        self.source = open_source(name, task=None, arch=None, metric="", files={}, seed=0, allow_code=False)
        self.name, workload = name, Workload()
        self.layers = self.source.layers(workload)
        self.context = Context(
            self.source.data, self.source.task, workload, self.layers, self.source.inputs, store=store, key=name
        )
        self.original = self._logits(self.model)

    @property
    def model(self) -> LoadedModel:
        assert self.source.model is not None
        return self.source.model

    @torch.no_grad()
    def _logits(self, model: LoadedModel) -> list[Tensor]:
        found = []
        for batch in self.source.data.search.batches(BATCH):
            inputs = {name: torch.from_numpy(array) for name, array in batch.items() if name != "labels"}
            found.append(model.forward(inputs).cpu())
        return found

    def _losses(self, logits: Sequence[Tensor]) -> Tensor:
        """Mean loss of each window. [windows]"""
        wanted = torch.from_numpy(self.source.data.search.inputs["input_ids"])[:, 1:].split(BATCH)  # type: ignore[no-untyped-call]
        each = [
            F.cross_entropy(x[:, :-1].transpose(1, 2), y, reduction="none").mean(1)
            for x, y in zip(logits, wanted, strict=True)
        ]
        return torch.cat(each)

    def row(self, technique: OneShotPruning, uniform: Tensor | None) -> tuple[dict[str, Any], Tensor]:
        """What a technique makes of the model, and the loss of each window; `uniform` has those to compare with."""
        began = time.perf_counter()
        measured = 0
        if technique.allocation == "sensitivity" or technique.max_loss is not None:
            paths = self._paths(technique)
            measured = layer_curves(technique, self.model.clone(), self.context, paths, {}).runs
        between = time.perf_counter()
        pruned, decision = apply(technique, self.model.clone(), self.context)
        ended = time.perf_counter()
        logits = self._logits(pruned)
        lost = self._losses(logits)
        gain = lost - (lost if uniform is None else uniform)
        apart = [float(soft_loss(x, y, 1.0)) for x, y in zip(logits, self.original, strict=True)]
        chosen = self.layers.choose(decision.density.__contains__)
        found = {
            "model": self.name,
            "technique": technique.id,
            "ratio": technique.ratio if technique.max_loss is None else None,
            "max_loss": technique.max_loss,
            "allocation": technique.allocation,
            "sparsity": technique.effect(self.layers, decision).keep(chosen).sparsity,
            "perplexity": float(lost.mean().exp()),
            "difference": float(gain.mean()) if uniform is not None else None,
            "plus_minus": float(1.96 * gain.std() / len(gain) ** 0.5) if uniform is not None else None,
            "divergence": sum(apart) / len(apart),
            "measured": measured,
            "measuring_seconds": between - began,
            "seconds": ended - between,
        }
        return found, lost

    def _paths(self, technique: OneShotPruning) -> list[str]:
        paths = self.layers.path[technique.touches(self.layers)].tolist()
        return [path for path in paths if matrices(self.model.module, path)]


def rows(
    bench: Bench, technique: type[OneShotPruning], ratios: Sequence[float], budgets: Sequence[float]
) -> Iterator[Any]:
    """One row for each ratio and allocation, then one for each budget."""
    for ratio in ratios:
        uniform = None
        for allocation in ALLOCATIONS:
            chosen = technique.model_validate({"ratio": ratio, "allocation": allocation})
            row, lost = bench.row(chosen, uniform)
            uniform = lost if uniform is None else uniform
            yield row
    for budget in budgets:
        yield bench.row(technique.model_validate({"max_loss": budget, "allocation": "sensitivity"}), None)[0]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="zoo:stdlib-lm,zoo:stdlib-gpt2")
    parser.add_argument("--techniques", default="wanda,sparsegpt")
    parser.add_argument("--ratios", default="60,70")
    parser.add_argument("--losses", default="")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    techniques = [TECHNIQUES[name] for name in asked.techniques.split(",")]
    ratios, budgets = [percent / 100 for percent in _numbers(asked.ratios)], _numbers(asked.losses)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        benches = [Bench(name, store) for name in asked.models.split(",")]
        show([row for bench in benches for cls in techniques for row in rows(bench, cls, ratios, budgets)])


if __name__ == "__main__":
    main()

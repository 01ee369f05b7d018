"""What an allocation of zeros gains over one ratio: losses of each window of a language model, in pairs.

python -m benchmarks.allocation [--models zoo:stdlib-lm,zoo:stdlib-gpt2] [--techniques wanda,sparsegpt]
    [--ratios 60,70] [--json]

`difference` is the mean loss with the allocation less that with one ratio, and `plus_minus` its 95 % interval: an
allocation helps where their sum is below 0.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.context import Context
from backends.data import Split
from backends.models import LoadedModel
from backends.prune.by_inputs import apply
from backends.sources import open_source
from benchmarks.show import show
from knowledge.techniques.prune_once import OneShotPruning, SparseGpt, Wanda
from knowledge.values import Workload

TECHNIQUES: dict[str, type[OneShotPruning]] = {"wanda": Wanda, "sparsegpt": SparseGpt}
ALLOCATIONS = ("uniform", "outliers", "sensitivity")


@torch.no_grad()
def losses(model: LoadedModel, split: Split) -> Tensor:
    """Mean loss of each window. [windows]"""
    found = []
    for batch in split.batches(16):
        inputs = {name: torch.from_numpy(array) for name, array in batch.items() if name != "labels"}
        logits = model.forward(inputs).cpu()
        wanted = inputs["input_ids"][:, 1:]
        found.append(F.cross_entropy(logits[:, :-1].transpose(1, 2), wanted, reduction="none").mean(1))
    return torch.cat(found)


def rows(model: str, technique: type[OneShotPruning], ratio: float) -> Iterator[dict[str, Any]]:
    """One row for each allocation."""
    source = open_source(model, task=None, arch=None, metric="", files={}, seed=0, allow_code=False)
    assert source.model is not None
    workload = Workload()
    layers = source.layers(workload)
    context = Context(source.data, source.task, workload, layers, source.inputs)
    uniform = None
    for allocation in ALLOCATIONS:
        chosen = technique.model_validate({"ratio": ratio, "allocation": allocation})
        began = time.perf_counter()
        pruned, decision = apply(chosen, source.model.clone(), context)
        seconds = time.perf_counter() - began
        lost = losses(pruned, source.data.search)
        uniform = lost if uniform is None else uniform
        gain = lost - uniform
        pruned_rows = layers.choose(decision.density.__contains__)
        yield {
            "model": model,
            "technique": technique.id,
            "ratio": ratio,
            "allocation": allocation,
            "sparsity": chosen.effect(layers, decision).keep(pruned_rows).sparsity,
            "perplexity": float(lost.mean().exp()),
            "difference": float(gain.mean()),
            "plus_minus": float(1.96 * gain.std() / len(gain) ** 0.5),
            "seconds": seconds,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="zoo:stdlib-lm,zoo:stdlib-gpt2")
    parser.add_argument("--techniques", default="wanda,sparsegpt")
    parser.add_argument("--ratios", default="60,70")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    techniques = [TECHNIQUES[name] for name in asked.techniques.split(",")]
    ratios = [float(percent) / 100 for percent in asked.ratios.split(",")]
    names = asked.models.split(",")
    show([row for name in names for cls in techniques for ratio in ratios for row in rows(name, cls, ratio)])


if __name__ == "__main__":
    main()

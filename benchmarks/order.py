"""Whether the published order of one-shot methods holds here: losses paired over evaluation windows.

python -m benchmarks.order [--models stdlib-lm,stdlib-gpt2] [--calibration 128] [--windows 256] [--json]

A row for each pair: by how many percent the first method's perplexity lies below the second's, with the 95 % interval
of the mean of the windows' differences. Above 0: the order holds; an interval around 0: the two cannot be told apart.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.models import load
from backends.zoo.stdlib import token_windows
from benchmarks.one_shot import run
from benchmarks.show import show

BATCH = 32
PAIRS = (
    ("sparsegpt-60", "wanda-60"),
    ("wanda-60", "magnitude-60"),
    ("sparsegpt-2:4", "wanda-2:4"),
    ("wanda-2:4", "magnitude-2:4"),
    ("gptq-3-g128", "round-3-g128"),
    ("gptq-2-g64", "round-2-g64"),
    ("awq-3-g128", "round-3-g128"),
    ("awq-2-g64", "round-2-g64"),
)


@torch.no_grad()
def losses(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean loss of each window over its tokens from the second on. [windows]"""
    found = []
    for part in windows.split(BATCH):
        logits = model(input_ids=part, use_cache=False).logits
        found.append(F.cross_entropy(logits[:, :-1].transpose(1, 2), part[:, 1:], reduction="none").mean(1))
    return torch.cat(found)


def rows(name: str, calibration: int, windows: int) -> Iterator[dict[str, Any]]:
    """The pairs on one embedded model."""
    original: Any = load(f"zoo:{name}").module
    read, judged = (
        torch.from_numpy(token_windows(part, count, 0).inputs["input_ids"])
        for part, count in (("calibration", calibration), ("verification", windows))
    )
    found: dict[str, Tensor] = {}
    for setting in dict.fromkeys(setting for pair in PAIRS for setting in pair):
        model = copy.deepcopy(original)
        run(model, read, setting)
        found[setting] = losses(model, judged)
    for better, worse in PAIRS:
        difference = found[worse] - found[better]
        margin = 1.96 * float(difference.std()) / math.sqrt(len(difference))
        below = float(difference.mean())
        row = {"model": name, "first": better, "second": worse, "perplexity": float(found[better].mean().exp())}
        yield row | {"below_percent": 100 * below, "low": 100 * (below - margin), "high": 100 * (below + margin)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="stdlib-lm,stdlib-gpt2")
    parser.add_argument("--calibration", type=int, default=128)
    parser.add_argument("--windows", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    show([row for name in asked.models.split(",") for row in rows(name, asked.calibration, asked.windows)])


if __name__ == "__main__":
    main()

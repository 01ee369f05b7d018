"""Seconds of a fine-tuning on the CPU, and of one with torch's defaults, in turn in one process.

python -m benchmarks.training [--models zoo:digits-cnn,zoo:digits-vit] [--samples 300] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

from torch.optim import AdamW

from backends.models import load
from backends.tasks import task_for
from backends.training import train
from backends.zoo.catalog import zoo_data
from benchmarks.show import show

MODELS = "zoo:digits-cnn,zoo:digits-dwcnn,zoo:digits-vit,zoo:digits-lstm,zoo:stdlib-gpt2"


def rows(models: list[str], samples: int, repeats: int) -> Iterator[dict[str, Any]]:
    """One row per model: the least of some trainings each way, after one that warms up, and the losses they end at."""
    for name in models:
        least, losses = {"ours": float("inf"), "default": float("inf")}, {}
        split = zoo_data(name.removeprefix("zoo:"), 0).train.head(samples)
        for repeat in range(repeats + 1):
            for way in least:
                model = load(name)
                with _way(way):
                    began = time.perf_counter()
                    curve = train(model, task_for(model.info.task), split, epochs=2, learning_rate=1e-3)
                    seconds = time.perf_counter() - began
                least[way] = min(least[way], seconds) if repeat else least[way]
                losses[f"{way}_loss"] = curve[-1].loss
        ratio = least["ours"] / least["default"]
        yield {"model": name, **{f"{way}_seconds": s for way, s in least.items()}, "ratio": ratio, **losses}


@contextmanager
def _way(way: str) -> Iterator[None]:
    with ExitStack() as stack:
        if way == "default":
            stack.enter_context(patch("torch.optim.AdamW", lambda groups, lr, fused: AdamW(groups, lr=lr)))
            stack.enter_context(patch("backends.training.channels_last", lambda *given: nullcontext()))
        yield


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    show(list(rows(asked.models.split(","), asked.samples, asked.repeats)))

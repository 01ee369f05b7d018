"""Seconds of an export, and of one that leaves nothing out of what torch's exporter does, in turn in one process.

python -m benchmarks.exporting [--models zoo:digits-vit,zoo:minilm] [--repeats 2] [--json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from backends.models import load
from backends.onnx.export import export
from benchmarks.show import show
from knowledge.values import Workload

MODELS = "zoo:digits-cnn,zoo:digits-vit,zoo:minilm,zoo:stdlib-gpt2,zoo:stdlib-lm"


def rows(models: list[str], repeats: int) -> Iterator[dict[str, Any]]:
    """One row per model: the least of some exports each way, after one that fills the caches of symbols."""
    for name in models:
        model, least = load(name), {"short": float("inf"), "long": float("inf")}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export(model, path, Workload())
            for _ in range(repeats):
                for way in least:
                    began = time.perf_counter()
                    with _way(way):
                        export(model, path, Workload())
                    least[way] = min(least[way], time.perf_counter() - began)
        yield {
            "model": name,
            **{f"{way}_seconds": s for way, s in least.items()},
            "ratio": least["short"] / least["long"],
        }


@contextmanager
def _way(way: str) -> Iterator[None]:
    with ExitStack() as stack:
        if way == "long":
            stack.enter_context(patch("backends.onnx.export.traced_once", lambda: nullcontext([])))
            stack.enter_context(patch("backends.onnx.export.shortcuts", nullcontext))
        yield


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    show(list(rows(asked.models.split(","), asked.repeats)))

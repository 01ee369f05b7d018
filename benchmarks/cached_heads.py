"""Milliseconds of the next token behind so many cached ones, with and without a copy of shared heads for each query.

python -m benchmarks.cached_heads [--cached 32,128,512,1024,2048] [--repeats 40] [--json]

A Llama of random numbers: 2 blocks of width 1024, 16 query heads on 4 heads of keys and values, weights in 4 bits in
groups of 32. Both files take turns in one process, with one thread; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime as ort
import torch
import transformers

from backends.context import Context
from backends.data import Data, Split
from backends.huggingface import wrap
from backends.onnx.cache_names import PAST
from backends.onnx.export import export
from backends.onnx.session import open_session
from backends.onnx.weight_only import apply
from backends.profile import profile
from backends.tasks import task_for
from benchmarks.show import show
from knowledge.deploy import deployed
from knowledge.techniques.groups import WeightOnly
from knowledge.values import Workload

WORKLOAD = Workload(seq_len=16, threads=1)
SIZES = {"vocab_size": 1024, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 4096}


def rows(cached: list[int], repeats: int, sizes: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """One row per number of cached tokens."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = [open_session(path, 1) for path in files(Path(folder), sizes)]
        for count in cached:
            copied, shared = milliseconds(sessions, count, repeats)
            yield {"cached": count, "copied_ms": copied, "shared_ms": shared, "speedup": copied / shared}


def files(folder: Path, sizes: Mapping[str, int]) -> tuple[Path, Path]:
    """The model in 4 bits, exported with copies and as ever."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**sizes)
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = wrap(module.eval(), "benchmarks:llama", "causal-lm", None, None)
    none = Split({"input_ids": np.zeros((1, 16), np.int64), "attention_mask": np.ones((1, 16), np.int64)})
    layers, task = deployed(profile(model, WORKLOAD)), task_for("causal-lm")
    context = Context(Data(none, none, none, none), task, WORKLOAD, layers, model.inputs)
    plain, copied, shared = (folder / f"{name}.onnx" for name in ("plain", "copied", "shared"))
    with patch("backends.onnx.export.multiply_shared_heads"):
        export(model, plain, WORKLOAD)
    apply(WeightOnly(bits=4, group_size=32), plain, copied, context)
    export(model, plain, WORKLOAD)
    apply(WeightOnly(bits=4, group_size=32), plain, shared, context)
    return copied, shared


def milliseconds(sessions: list[ort.InferenceSession], cached: int, repeats: int) -> list[float]:
    """Of each session, in turn, for one token more."""
    rng = np.random.default_rng(0)
    feed = {"input_ids": np.ones((1, 1), np.int64), "attention_mask": np.ones((1, cached + 1), np.int64)}
    for spec in sessions[0].get_inputs():
        if spec.name.startswith(PAST):
            feed[spec.name] = rng.standard_normal((1, spec.shape[1], cached, spec.shape[3]), np.float32)
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
    names = [value.name for value in sessions[0].get_outputs()]
    taken: list[list[float]] = [[] for _ in sessions]
    for _ in range(repeats):
        for session, seconds in zip(sessions, taken, strict=True):
            began = time.perf_counter()
            session.run_with_ort_values(names, values)
            seconds.append(time.perf_counter() - began)
    return [1e3 * statistics.median(seconds) for seconds in taken]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cached", default="32,128,512,1024,2048")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    show(list(rows([int(one) for one in asked.cached.split(",")], asked.repeats, {**SIZES, **HEADS})))

"""Does the roofline predict this machine? Chains on the embedded models, measured on one thread and predicted.

python -m benchmarks.roofline [--json] [MODEL...]

It calibrates first (`advisor targets calibrate`). Measured is the time that the one thread computes, so that other
processes' turns do not count; the files of a model take turns. Nothing is trained. The last row holds the medians of
the absolute errors.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advisor.calibration import calibrate_machine
from advisor.predict import Predictor
from benchmarks.chains import applies, parse
from benchmarks.show import show
from knowledge.load import load_knowledge
from knowledge.schema import Target
from knowledge.techniques.catalog import build
from knowledge.values import Workload

if TYPE_CHECKING:
    from backends.onnx.session import Batch
    from backends.runner import Pipeline

MODELS = ("digits-cnn", "digits-dwcnn", "digits-lstm", "digits-vit", "stdlib-lm", "stdlib-gpt2", "stdlib-moe", "minilm")
CHAINS = (
    "fp16",
    "int8_dynamic",
    "int8_static",
    "graph_fusion",
    "int8_dynamic + graph_fusion",
    "channels ratio=0.3",
    "channels ratio=0.5",
    "channels ratio=0.5 + int8_static",
    "layer_drop ratio=0.5",
    "layer_drop ratio=0.5 + int8_dynamic",
    "svd ratio=0.5",
    "svd ratio=0.5 + int8_dynamic",
)
OPENINGS, ROUNDS, LONGEST_SECONDS, FEWEST = 3, 40, 2.0, 5
BURST_MS, MOST_REPEATS = 1.0, 60


def rows(models: tuple[str, ...] = MODELS) -> list[dict[str, Any]]:
    """One row per chain, and one with the medians."""
    with tempfile.TemporaryDirectory() as folder:
        target, *_ = calibrate_machine(Path(folder) / "this-machine.yaml", progress=progress)
    found = [row for model in models for row in of_model(model, target)]
    errors = [abs(row["error"]) for row in found if row["error"] is not None]
    latencies = [abs(row["latency_error"]) for row in found]
    summary = dict.fromkeys(found[0]) | {"model": "all", "chain": f"median of {len(errors)}"}
    return [*found, summary | {"error": float(np.median(errors)), "latency_error": float(np.median(latencies))}]


def of_model(name: str, target: Target) -> Iterator[dict[str, Any]]:
    """The uncompressed model, then each chain that applies to it."""
    from backends.onnx.workload import workload_feed
    from backends.runner import Pipeline
    from backends.store import Store

    workload = Workload(seq_len=None if name.startswith("digits") else 128, threads=1)
    pipeline = Pipeline.open(f"zoo:{name}", workload=workload, seed=0, store=Store())
    baseline = pipeline.file(pipeline.baseline)
    feed = workload_feed(baseline, pipeline.source.data.calibration, workload)
    layers = pipeline.original_layers
    predictor = Predictor(layers, target, workload, load_knowledge())
    texts = [text for text in CHAINS if applies(text, layers)]
    files = {"nothing": baseline} | {text: carried_out(pipeline, text) for text in texts}
    progress(f"measuring {name}")
    times = measure(files, feed)
    for text, file_times in times.items():
        outlook = predictor.chain([build(stage) for stage in parse(text, layers)]) if text in texts else None
        predicted = (outlook or predictor.baseline).latency.total
        speedup = float(np.median(times["nothing"] / file_times))
        yield {
            "model": name,
            "chain": text,
            "measured_speedup": speedup,
            "predicted_speedup": outlook.speedup if outlook else 1.0,
            "error": outlook.speedup / speedup - 1 if outlook else None,
            "measured_ms": float(np.median(file_times)),
            "predicted_ms": predicted,
            "latency_error": predicted / float(np.median(file_times)) - 1,
        }


def carried_out(pipeline: Pipeline, text: str) -> Path:
    """The ONNX file that a written chain makes."""
    stages = parse(text, pipeline.original_layers)
    return pipeline.file(list(pipeline.run([build(stage) for stage in stages]))[-1])


def measure(files: dict[str, Path], feed: Batch) -> dict[str, np.ndarray]:
    """Milliseconds per call of each file, one entry per round: in every round all files take turns."""
    from backends.onnx.session import completed, open_session

    times: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(OPENINGS):
        calls = {}
        for name, path in files.items():
            session = open_session(path, 1)
            output, inputs = [session.get_outputs()[0].name], completed(feed, session)
            calls[name] = lambda s=session, o=output, i=inputs: s.run(o, i)
        repeats = {name: max(1, min(MOST_REPEATS, round(BURST_MS / warm(call)))) for name, call in calls.items()}
        started, done = time.perf_counter(), 0
        while done < FEWEST or (done < ROUNDS and time.perf_counter() - started < LONGEST_SECONDS):
            for name in calls if done % 2 else reversed(calls):
                times[name].append(milliseconds(calls[name], repeats[name]))
            done += 1
    return {name: np.array(found) for name, found in times.items()}


def warm(call: Callable[[], object]) -> float:
    return min(milliseconds(call, 1) for _ in range(4))


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Milliseconds that this thread computes for one call."""
    call()
    start = time.thread_time_ns()
    for _ in range(repeats):
        call()
    return (time.thread_time_ns() - start) / repeats / 1e6


def progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    show(rows(tuple(a for a in sys.argv[1:] if not a.startswith("-")) or MODELS))

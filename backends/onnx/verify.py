"""The proof on the file that ships: both files measured side by side on data that nothing has seen."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backends.onnx.decoding import measure_decoding, undecodable
from backends.onnx.environment import environment
from backends.onnx.explain import Case, explanations
from backends.onnx.facts import file_facts
from backends.onnx.memory import peak_memory_bytes
from backends.onnx.session import Batch, Predict, open_session, session_predictor
from backends.onnx.timing import ROUNDS, compare_files
from backends.onnx.verification import Explanation, PackedWeights, Parity, Protocol, Verification, efficiency, judge
from backends.onnx.workload import session_feed
from backends.windows import Windows, cut, scored_tokens
from knowledge.values import Budget, Latency, Measurement, Quality, Workload

if TYPE_CHECKING:
    from backends.data import Split
    from backends.tasks import Task

KEPT_BYTES = 512 * 2**20
CHUNK = 1 << 20


def verify(
    baseline: Path,
    compressed: Path,
    *,
    task: Task,
    split: Split,
    reference: np.ndarray | None,
    workload: Workload,
    budget: Budget,
    rounds: int = ROUNDS,
    longest: int = 0,
    prompts: Sequence[int] = (),
    batches: Sequence[int] = (),
    packed: PackedWeights | None = None,
    windows: Windows | None = None,
) -> Verification:
    """Measure two ONNX files against each other and judge the second by the budget.

    Quality is the task's metric on `split`, through ONNX Runtime; latency is measured at the workload, the two files
    taking turns; memory is the peak of a fresh process for each; download size is what zlib leaves of the file. Files
    with a key-value cache also write text, see `measure_decoding`: `longest` is the positions that the model has,
    `prompts` and `batches` what was asked for. `packed` lies beside the second file. `windows`: how the
    split's text is cut to take perplexity over, other than into its samples. Raises InputError where a file cannot be
    read.
    """
    files = baseline, compressed
    first, second = (open_session(path, workload.threads) for path in files)
    feed = session_feed(first, split, workload)
    latencies = compare_files(baseline, compressed, feed, workload.threads, rounds)
    recorders = Recorder(session_predictor(first)), Recorder(session_predictor(second))
    scored = cut(split, windows) if windows else split
    qualities = [task.evaluate(predict, scored, reference) for predict in recorders]
    before, after = (
        measure(path, latency, quality, feed, workload.threads)
        for path, latency, quality in zip(files, latencies[:2], qualities, strict=True)
    )
    speedup = latencies[2]
    where = environment(workload.threads, second)
    silent = [undecodable(session) for session in (first, second)]
    decoding = () if any(silent) else measure_decoding(*files, split, workload, longest, prompts, batches)
    case = Case(before, after, file_facts(baseline), file_facts(compressed), speedup, workload, where, packed)
    return Verification(
        workload=workload,
        baseline=before,
        compressed=after,
        compression=before.size_bytes / after.size_bytes,
        speedup=speedup,
        efficiency=efficiency(before, after, speedup),
        parity=parity(*(r.outputs for r in recorders), scores=task.name != "embedding"),
        environment=where,
        verdict=judge(budget, before, after, speedup),
        protocol=protocol_of(scored, windows) if task.metric == "perplexity" else None,
        explanations=explanations(case) + (_unmeasured(silent) if task.name == "causal-lm" else ()),
        decoding=decoding,
        packed=packed,
    )


def protocol_of(scored: Split, windows: Windows | None = None) -> Protocol:
    """What perplexity is taken over: windows of a text, or the samples themselves."""
    length = next(iter(scored.inputs.values())).shape[1]
    stride = windows.stride if windows else length
    return Protocol(window=length, stride=stride, tokens=scored_tokens(scored), windows=len(scored))


def _unmeasured(silent: Sequence[str]) -> tuple[Explanation, ...]:
    """Why no tokens per second stand in the table of a causal model; `silent`: of either file, why it cannot write."""
    found = [f"the {name} file {why}" for name, why in zip(("uncompressed", "compressed"), silent, strict=True) if why]
    text = f"Decoding was not measured: {', and '.join(found)}."
    return (Explanation(rule="no-key-value-cache", text=text),) if found else ()


def measure(path: Path, latency: Latency, quality: Quality, feed: Batch, threads: int) -> Measurement:
    """The figures of one file."""
    return Measurement(
        size_bytes=path.stat().st_size,
        download_bytes=download_bytes(path),
        latency_ms=latency,
        peak_memory_bytes=peak_memory_bytes(path, feed, threads),
        quality=quality,
    )


def download_bytes(path: Path) -> int:
    """Bytes that a compressing server sends for a file (zlib, level 6)."""
    packer = zlib.compressobj(6)
    with path.open("rb") as file:
        return sum(len(packer.compress(chunk)) for chunk in iter(lambda: file.read(CHUNK), b"")) + len(packer.flush())


class Recorder:
    """A predictor that keeps what it returned, up to a bound, so that files are compared without running them twice."""

    def __init__(self, predict: Predict) -> None:
        self.predict = predict
        self.outputs: list[np.ndarray] = []
        self._kept_bytes = 0

    def __call__(self, batch: Batch) -> np.ndarray:
        found = self.predict(batch)
        self._kept_bytes += found.nbytes
        if not self.outputs or self._kept_bytes <= KEPT_BYTES:
            self.outputs.append(found)
        return found


def parity(first: Sequence[np.ndarray], second: Sequence[np.ndarray], *, scores: bool) -> Parity:
    """Differences between two files' outputs, batch by batch: arrays of [n, ...].

    `scores` says whether the largest entry along the last axis is a choice.
    """
    differences, cosines, agreements = [], [], []
    for a, b in zip(first, second, strict=False):  # where memory was bounded, what both kept
        differences.append(float(np.abs(a - b).max(initial=0)))
        flat_a, flat_b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
        norms = np.linalg.norm(flat_a, axis=1) * np.linalg.norm(flat_b, axis=1)
        cosines.append((flat_a * flat_b).sum(1) / np.maximum(norms, 1e-30))
        agreements.append((a.argmax(-1) == b.argmax(-1)).reshape(-1))
    return Parity(
        max_abs_diff=max(differences),
        cosine=float(np.concatenate(cosines).mean()),
        top1_agreement=float(np.concatenate(agreements).mean()) if scores else None,
    )

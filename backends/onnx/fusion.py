"""Lossless fusion: the same numbers in fewer kernels, kept only where it measures faster on this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from backends.onnx import graph as graphs
from backends.onnx.attention import fuse_attention
from backends.onnx.decoding import read_in_two_parts, undecodable
from backends.onnx.options import CPU, session_options
from backends.onnx.session import Batch, open_session, session_predictor
from backends.onnx.strip import strip_model
from backends.onnx.timing import compare_files
from backends.onnx.workload import workload_feed
from knowledge.files import replacing
from knowledge.values import Decision, Refusal, RunFailed

if TYPE_CHECKING:
    from backends.context import Context
    from knowledge.techniques.fuse import GraphFusion

TOLERANCE = 1e-4  # of the largest output, or of 1
GROWTH = 1.01


def apply(technique: GraphFusion, path: Path, out: Path, context: Context) -> Decision:
    """Write `out` as the fastest exact rewrite of `path`, or as `path` itself where none is faster.

    A rewrite must give the same numbers on calibration data, grow the file by at most 1 %, and be faster at the
    workload with 95 % confidence. The decision's `kept` says whether one was, `skipped` why others were not.
    """
    feed = workload_feed(path, context.data.calibration, context.workload)
    best, fastest = path, 1.0
    skipped = []
    with tempfile.TemporaryDirectory() as folder:
        for name, rewrite in CANDIDATES.items():
            candidate = Path(folder) / f"{name}.onnx"
            reason, speedup = _tried(rewrite, path, candidate, feed, context.workload.threads)
            if reason:
                skipped.append(_refusal(technique.id, name, reason))
            elif speedup > fastest:
                best, fastest = candidate, speedup
        with replacing(out) as temporary:
            shutil.copyfile(best, temporary)
    return Decision(technique=technique.id, kept=best is not path, skipped=tuple(skipped))


def _tried(
    rewrite: Callable[[Path, Path], None], path: Path, candidate: Path, feed: Batch, threads: int
) -> tuple[str, float]:
    """Why a rewrite is of no use (empty: it is), and how many times faster it is."""
    try:
        rewrite(path, candidate)
        session = open_session(candidate, threads)
    except Exception as error:  # rewriters are other projects' code: any failure of theirs means no fusion
        return f"it failed ({type(error).__name__}: {str(error).strip()[:100]})", 0.0
    if candidate.stat().st_size > GROWTH * path.stat().st_size:
        return f"the file grows to {candidate.stat().st_size / path.stat().st_size:.2f} times its size", 0.0
    source = open_session(path, threads)
    expected, got = session_predictor(source)(feed), session_predictor(session)(feed)
    margin = TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0)))
    if not np.allclose(expected, got, rtol=0, atol=margin):
        return f"outputs change by up to {np.abs(expected - got).max():.2g}", 0.0
    if not undecodable(source):
        try:
            expected, got = read_in_two_parts(source, feed), read_in_two_parts(session, feed)
        except RunFailed as error:
            return f"it failed ({error})", 0.0
        if not np.allclose(expected, got, rtol=0, atol=margin):
            return f"behind cached tokens, outputs change by up to {np.abs(expected - got).max():.2g}", 0.0
    _, _, ratio = compare_files(path, candidate, feed, threads)
    if ratio.low <= 1:
        return f"{ratio.value:.2f} times as fast ({ratio.low:.2f} to {ratio.high:.2f})", 0.0
    return "", ratio.value


def _refusal(technique: str, name: str, reason: str) -> Refusal:
    return Refusal(
        technique=technique,
        rule="fusion-not-faster",
        observed=f"{name}: {reason}",
        required="the same numbers, the same size, and a speed-up that is certain",
    )


# -- rewrites --------------------------------------------------------------------------------------


def runtime_optimized(path: Path, out: Path) -> None:
    """ONNX Runtime's own extended optimizations, done once and kept in the file."""
    options = session_options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out)
    ort.InferenceSession(str(path), options, providers=[CPU])
    model = graphs.load(out)
    strip_model(model)
    graphs.save(model, out)


def transformer_fusions(path: Path, out: Path) -> None:
    """Rotary embeddings, norms with residuals and packed projections, as transformers rewrites them for the CPU."""
    from transformers.exporters.onnxruntime_fusions import fuse_for_onnxruntime

    model = graphs.load(path)
    ShapeInferencePass()(model)
    with graphs.quiet("onnxscript", "transformers"):
        fuse_for_onnxruntime(model, "cpu")
    strip_model(model)
    graphs.save(model, out)


def single_attention(path: Path, out: Path) -> None:
    """Every attention block as one node."""
    model = graphs.load(path)
    ShapeInferencePass()(model)
    if not fuse_attention(model.graph):
        raise ValueError("no attention block of a known form")
    RemoveUnusedNodesPass()(model)
    strip_model(model)
    graphs.save(model, out)


CANDIDATES: dict[str, Callable[[Path, Path], None]] = {
    "runtime-optimized": runtime_optimized,
    "transformer-fusions": transformer_fusions,
    "single-attention": single_attention,
}

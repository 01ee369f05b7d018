"""The facts of one request: the vocabulary of `knowledge.conditions`, from the request, the model and the target."""

from __future__ import annotations

import numpy as np

from advisor.predict import Predictor
from advisor.request import Request
from knowledge.conditions import FactValue
from knowledge.layers import LayerTable
from knowledge.tasks import TASKS


def facts_of(request: Request, predictor: Predictor, evidence: int = 0) -> dict[str, FactValue]:
    """Values for the vocabulary; what does not apply is None and satisfies no condition.

    `evidence`: chains that the user's own runs measured on this model.
    """
    layers, target = predictor.layers, predictor.target
    info, base = layers.info, predictor.baseline
    kind, _ = TASKS.get(request.task or info.task, ("accuracy", "pp"))
    smallest = [m for m in (request.max_size_bytes, figure(target.max_size_bytes)) if m]
    ratios = [base.bytes / limit for limit in smallest]
    speedups = [s for s in (request.min_speedup,) if s]
    if request.max_latency_ms:
        speedups.append(base.latency.total / request.max_latency_ms)
    return {
        "arch": info.family,
        "subfamily": info.subfamily or None,
        "task": request.task,
        "task.kind": task_kind(request.task or info.task),
        "metric": kind,
        "model.given": bool(request.model),
        "model.file": request.model.endswith(".onnx"),
        "parameters": float(layers.parameters),
        "size_bytes": base.bytes,
        "blocks": count(info.blocks),
        "experts": count(info.experts),
        "heads": count(info.heads),
        "kv_heads": count(info.kv_heads),
        "vocab_size": count(info.vocab_size),
        "embedding_share": base.layers.embedding_share,
        "ffn_share": byte_share(base.layers, "ffn_", "experts"),
        "attention_share": byte_share(base.layers, "attention_"),
        "conv_share": conv_share(layers),
        "overhead_share": base.latency.overhead / base.latency.total,
        "memory_share": base.latency.memory / base.latency.total,
        "target": target.id,
        "target.class": target.target_class,
        "target.device": target.device,
        "target.accelerates": tuple(target.accelerates),
        "target.operators": tuple(target.operators),
        "target.runtime": target.provider,
        "target.memory_bytes": figure(target.max_memory_bytes),
        "target.size_limit_bytes": figure(target.max_size_bytes),
        "target.channel_block": figure(target.channel_block),
        "max_drop_pp": request.max_drop if kind == "accuracy" else None,
        "max_drop_percent": request.max_drop if kind != "accuracy" else None,
        "goal": request.goal,
        "training": request.training,
        "data_level": request.data_level,
        "teacher": request.teacher,
        "preset": request.preset or None,
        "evidence": float(evidence),
        "limits": request.limited,
        "latency_limited": bool(request.max_latency_ms or request.min_speedup),
        "fits_already": not misses_of(request, predictor, base.bytes, base.latency.total, 1.0, base.memory_bytes),
        "wanted_ratio": max(ratios) if ratios else None,
        "wanted_speedup": max(speedups) if speedups else None,
        "batch": float(request.batch),
        "seq_len": float(request.seq_len) if request.seq_len else None,
    }


def count(number: int) -> float | None:
    """A count that is a fact only where there is one."""
    return float(number) if number else None


def task_kind(task: str) -> str:
    """What comes out of a model with this task."""
    if task == "causal-lm":
        return "generation"
    if task.endswith("-classification"):
        return "classification"
    return "embedding" if task == "embedding" else "other"


def byte_share(layers: LayerTable, role: str, kind: str = "") -> float:
    """Share of the stored bytes in layers whose role begins with `role`, or of this kind."""
    rows = np.array([r.startswith(role) for r in layers.role], dtype=bool) | (layers.kind == kind)
    return float(layers.row_bytes[rows].sum() / max(layers.row_bytes.sum(), 1.0))


def conv_share(layers: LayerTable) -> float:
    """Share of the multiply-accumulates in convolutions."""
    macs = layers.row_macs
    return float(macs[layers.kind == "conv"].sum() / max(macs.sum(), 1.0))


def figure(value: object) -> float | None:
    """The number of a target's figure, where there is one."""
    return getattr(value, "value", None)


def misses_of(
    request: Request, predictor: Predictor, size: float, latency_ms: float, speedup: float, memory: float
) -> dict[str, tuple[float, float]]:
    """Limits of the request and the target that these figures miss, as (required, estimated)."""
    target = predictor.target
    found: dict[str, tuple[float, float]] = {}
    for limit in (request.max_size_bytes, figure(target.max_size_bytes)):
        if limit and size > limit:
            found["size"] = (min(float(limit), found.get("size", (np.inf, 0))[0]), size)
    for limit in (request.max_memory_bytes, figure(target.max_memory_bytes)):
        if limit and memory > limit:
            found["memory"] = (min(float(limit), found.get("memory", (np.inf, 0))[0]), memory)
    if request.max_latency_ms and latency_ms > request.max_latency_ms:
        found["latency"] = (request.max_latency_ms, latency_ms)
    if request.min_speedup and speedup < request.min_speedup:
        found["speedup"] = (request.min_speedup, speedup)
    return found

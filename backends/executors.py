"""Which function carries out which technique: one explicit line each, imported only when a stage runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from knowledge.techniques.base import Technique
from knowledge.techniques.calibrated import Awq, Gptq
from knowledge.techniques.distill import Distill
from knowledge.techniques.factorize import Svd
from knowledge.techniques.fuse import GraphFusion
from knowledge.techniques.groups import Nf4, WeightOnly
from knowledge.techniques.mixed import ExpertsInt4, MixedPrecision
from knowledge.techniques.prune import Magnitude
from knowledge.techniques.prune_once import SparseGpt, Wanda
from knowledge.techniques.quantize import Fp16, Int8Dynamic, Int8Static
from knowledge.techniques.recover import Finetune
from knowledge.techniques.reshape import Channels, LayerDrop
from knowledge.values import InputError

EXECUTORS: dict[type[Technique], str] = {
    Distill: "backends.distill.distill:apply",
    Channels: "backends.reshape.channels:apply",
    LayerDrop: "backends.reshape.layer_drop:apply",
    Svd: "backends.factorize.svd:apply",
    Magnitude: "backends.prune.magnitude:apply",
    Wanda: "backends.prune.by_inputs:apply",
    SparseGpt: "backends.prune.by_inputs:apply",
    Finetune: "backends.recover.finetune:apply",
    Fp16: "backends.onnx.fp16:apply",
    Int8Dynamic: "backends.onnx.int8_dynamic:apply",
    Int8Static: "backends.onnx.int8_static:apply",
    WeightOnly: "backends.onnx.weight_only:apply",
    Gptq: "backends.quantize.by_inputs:apply",
    Awq: "backends.quantize.by_inputs:apply",
    Nf4: "backends.onnx.nf4:apply",
    MixedPrecision: "backends.onnx.mixed:apply",
    ExpertsInt4: "backends.onnx.experts_int4:apply",
    GraphFusion: "backends.onnx.fusion:apply",
}


def executor(technique: type[Technique]) -> Callable[..., Any]:
    """The function behind a technique. MODEL level: (technique, model, context) -> (model, Decision); GRAPH level:
    (technique, source path, target path, context) -> Decision. Raises InputError as `require_executor` does."""
    require_executor(technique)
    module, _, name = EXECUTORS[technique].partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def require_executor(technique: type[Technique]) -> None:
    """Raise InputError for a technique that can be planned with and not carried out yet, naming those that can."""
    if technique not in EXECUTORS:
        others = [cls.id for cls in EXECUTORS if cls.family is technique.family]
        instead = f"take {' or '.join(others)} instead, or leave" if others else "leave"
        raise InputError("stages", technique.id, "cannot be run yet", f"{instead} this stage out")

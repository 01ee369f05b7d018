"""Which method carries out a one-shot technique, all of a model's layers alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backends.oneshot.matrices import Matrix
from backends.oneshot.methods import Method, awq_method, gptq_method, sparsegpt_method, wanda_method
from knowledge.techniques.base import Technique
from knowledge.techniques.groups import Awq, Gptq
from knowledge.techniques.patterns import by_layer
from knowledge.techniques.prune_once import OneShotPruning, SparseGpt
from knowledge.values import InputError

STREAMED = ("wanda", "sparsegpt", "gptq", "awq")


def method_for(technique: Technique, readers: Mapping[str, Sequence[Matrix]]) -> Method:
    """The engine's method; `readers` is what AWQ needs to know of a block: see `readers_together`.

    Raises InputError for a technique that is none of STREAMED, and for parameters that look at the whole model.
    """
    if isinstance(technique, Gptq):
        form = technique.bits, technique.group_size, technique.symmetric
        return gptq_method(*form, technique.damping, technique.reorder)
    if isinstance(technique, Awq):
        form = technique.bits, technique.group_size, technique.symmetric
        return awq_method(*form, technique.grid, technique.clip, readers)
    if not isinstance(technique, OneShotPruning):
        remedy = f"use {', '.join(STREAMED)}, or `advisor run` for all others"
        raise InputError("technique", technique.id, "does not work block by block", remedy)
    if technique.allocation != "uniform":
        problem = f"{technique.allocation} looks at the whole model before any block"
        raise InputError(f"{technique.id}.allocation", technique.allocation, problem, "leave it at uniform")

    def ratio(path: str) -> float:
        return float(by_layer(technique.layer_ratios, [path], technique.ratio)[0])

    if not isinstance(technique, SparseGpt):
        return wanda_method(ratio, technique.kept())
    if technique.bits < 32:
        problem = "rounding at the same time needs the model's own export"
        raise InputError("sparsegpt.bits", technique.bits, problem, "leave it at 32, or use `advisor run`")
    return sparsegpt_method(ratio, technique.kept(), technique.damping)

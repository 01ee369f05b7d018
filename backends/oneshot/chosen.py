"""Which method carries out a one-shot technique."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from backends.oneshot.matrices import Matrix
from backends.oneshot.methods import Method, Outcome, Ratio, awq_method, gptq_method, sparsegpt_method, wanda_method
from backends.oneshot.statistics import Inputs
from knowledge.techniques.base import Technique
from knowledge.techniques.calibrated import Awq, Gptq
from knowledge.techniques.patterns import by_layer, naming_none
from knowledge.techniques.prune_once import OneShotPruning, SparseGpt
from knowledge.values import InputError

STREAMED = ("wanda", "sparsegpt", "gptq", "awq")
Forms = Mapping[str, tuple[int, int]]  # bits and group size of paths that are rounded in the same pass


def method_for(
    technique: Technique,
    readers: Mapping[str, Sequence[Matrix]],
    ratio: Ratio | None = None,
    forms: Forms | None = None,
) -> Method:
    """The engine's method; `readers` is what AWQ needs to know of a block: see `readers_together`.

    A caller that knows the whole model gives pruning the `ratio` of each path, and SparseGPT its `forms`. Without them
    layers are pruned as the technique alone says. Raises InputError for a technique that is none of STREAMED, and then
    for parameters that look at the whole model, or set two ratios.
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
    if ratio is None:
        return _whole_groups(_pruning(technique, _own_ratio(technique), forms), technique)
    return _pruning(technique, ratio, forms)


def check_layers(technique: Technique, paths: Sequence[str]) -> None:
    """Raise InputError for ratios of layers that are none of these, which are all that the technique is to change.

    And where it is to leave experts out.
    """
    if not getattr(technique, "include_experts", True):
        remedy = "leave it at true, or use `advisor run`"
        raise InputError(f"{technique.id}.include_experts", False, "blocks are compressed as a whole", remedy)
    unknown = naming_none(technique.layer_ratios, paths) if isinstance(technique, OneShotPruning) else ()
    if unknown:
        problem = f"names no layer of the blocks, whose paths are such as {paths[0]}"
        remedy = "write whole parts of paths, or leave it out"
        raise InputError(f"{technique.id}.layer_ratios", ", ".join(unknown), problem, remedy)


def _pruning(technique: OneShotPruning, ratio: Ratio, forms: Forms | None) -> Method:
    if not isinstance(technique, SparseGpt):
        return wanda_method(ratio, technique.kept(), exact=technique.allocation != "uniform")
    if forms is None and technique.bits < 32:
        problem = "rounding at the same time needs the model's own export"
        raise InputError("sparsegpt.bits", technique.bits, problem, "leave it at 32, or use `advisor run`")
    return sparsegpt_method(ratio, technique.kept(), technique.damping, forms)


def _own_ratio(technique: OneShotPruning) -> Ratio:
    """What the technique says of a path without a look at the model; raises InputError where that is not enough."""
    if technique.allocation != "uniform":
        problem = f"{technique.allocation} looks at the whole model before any block"
        raise InputError(f"{technique.id}.allocation", technique.allocation, problem, "leave it at uniform")
    if technique.max_loss is not None:
        problem = "is measured on the whole model before any block"
        raise InputError(f"{technique.id}.max_loss", technique.max_loss, problem, "leave it out, or use `advisor run`")
    if len(said := technique.ratios_set()) > 1:
        remedy = ", or ".join(said.values())
        raise InputError(technique.id, " and ".join(said), "each sets the ratio of every layer", remedy)

    def ratio(path: str) -> float:
        return float(by_layer(technique.layer_ratios, [path], technique.ratio)[0])

    return ratio


def _whole_groups(method: Method, technique: OneShotPruning) -> Method:
    """The method, which raises InputError for a matrix whose rows do not divide into the technique's N:M groups."""
    among = technique.kept()[1]

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        if among and weight.shape[1] % among:
            problem = f"{path} has {weight.shape[1]:,} inputs, which make no whole groups of {among}"
            remedy = "take another pattern, or `advisor run`, which leaves such layers whole"
            raise InputError(f"{technique.id}.pattern", technique.pattern, problem, remedy)
        return method.apply(path, weight, inputs)

    return replace(method, apply=apply)

"""Architecture search: the largest model of the same kind that answers within a latency budget."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field

from knowledge.layers import LayerTable, ModelInfo
from knowledge.techniques.base import Epochs, LearningRate, Need, Phase, Range
from knowledge.techniques.reshape import Reshaping
from knowledge.values import Decision, Refusal, StudentShape

Scales = tuple[Annotated[float, Field(gt=0, le=1)], ...]
Sizes = tuple[int, int, int]


class ArchitectureSearch(Reshaping):
    """Try other widths, depths and image resolutions, keep what answers in time, and train the best of it.

    Every combination of `widths`, `depths` (of models that repeat blocks) and `resolutions` (of convolutional ones) is
    a candidate. Those that need more than `latency_share` of the original's latency, or more than `max_latency_ms`, as
    measured on their files, are out: a budget is enforced, or none fits. The rest are trained on the original's
    outputs. Before anything is measured, arithmetic stands for latency, and the candidate with most of it within the
    budget for the result. Multipliers of width and resolution: arXiv:1704.04861; of depth with them: arXiv:1905.11946.
    """

    id: ClassVar[str] = "architecture_search"
    phase: ClassVar[Phase] = Phase.DISTILL  # a new model, trained: it stands where a student would, not after one
    needs: ClassVar[frozenset[Need]] = frozenset({Need.UNLABELED, Need.TRAINING})
    paper: ClassVar[str] = "arXiv:1905.11946"
    dial: ClassVar[str] = "latency_share"

    latency_share: Annotated[float, Field(gt=0, lt=1), Range(0.2, 0.8, step=0.05)] = 0.5
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    widths: Annotated[Scales, Field(min_length=1)] = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
    depths: Annotated[Scales, Field(min_length=1)] = (1.0, 0.75, 0.5)
    resolutions: Annotated[Scales, Field(min_length=1)] = (1.0, 0.875, 0.75)
    epochs: Epochs = 3
    learning_rate: LearningRate = 3e-4

    def strength(self) -> float:
        return -math.log2(self.latency_share)

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        yield from super().refusals(layers)
        least = min(found.macs for found in self.candidates(layers)) / max(layers.macs, 1)
        if least > self.latency_share:
            yield Refusal(
                technique=self.id,
                rule="architecture-none-fits",
                observed=f"the smallest candidate still takes {100 * least:.0f} % of the arithmetic",
                required=f"at most {100 * self.latency_share:.0f} %",
                remedy="allow smaller widths, depths or resolutions, or more latency",
            )

    def candidates(self, layers: LayerTable) -> "list[Candidate]":
        """Every combination that the model's family can take."""
        return candidates(layers, self.widths, self.depths, self.resolutions)

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        from knowledge.students import resize

        if decision is not None:
            changed = resize(layers, decision.student) if decision.student is not None else layers
            return at_resolution(changed, decision.image_size) if decision.image_size is not None else changed
        found = self.candidates(layers)
        most = self.latency_share * layers.macs
        fitting = [candidate for candidate in found if candidate.macs <= most]
        return max(fitting).table if fitting else min(found).table


@dataclass(frozen=True, order=True)
class Candidate:
    """A model under consideration; larger means more arithmetic, then more parameters."""

    macs: int
    parameters: int
    table: LayerTable = field(compare=False)


_KNOWN: WeakKeyDictionary[LayerTable, dict[tuple[Scales, ...], list[Candidate]]] = WeakKeyDictionary()


def candidates(layers: LayerTable, widths: Scales, depths: Scales, resolutions: Scales) -> "list[Candidate]":
    """A table for every combination that the model's family can take; built once for each table."""
    from knowledge.students import resize

    known = _KNOWN.setdefault(layers, {})
    key = (widths, depths, resolutions)
    if key not in known:
        shapes = dict.fromkeys(candidate_shape(layers.info, w, d) for w, d in itertools.product(widths, depths))
        images = dict.fromkeys(image_sizes(layers, resolutions))
        built = [resize(layers, shape) for shape in shapes]
        tables = [at_resolution(t, i) if i is not None else t for t in built for i in images]
        known[key] = [Candidate(t.macs, t.parameters, t) for t in tables]
    return known[key]


def candidate_shape(info: ModelInfo, width: float, depth: float) -> StudentShape:
    """The model with `width` of its widths and `depth` of its blocks. Heads go in whole groups and keep their width.

    Embedding models keep the width of their vectors.
    """
    if info.family in ("cnn", "rnn"):
        return StudentShape(width=width)
    step = 32 if info.ffn_size >= 256 else 8
    ffn = max(step, step * round(width * info.ffn_size / step))
    blocks = max(1, round(depth * info.blocks))
    if info.task == "embedding":
        return StudentShape(blocks=blocks, ffn_size=min(ffn, info.ffn_size))
    heads, kv = max(info.heads, 1), info.kv_heads or max(info.heads, 1)
    groups = max(1, round(width * kv)) if heads % kv == 0 else kv
    own = info.head_dim or info.hidden_size // heads
    tied = own * heads == info.hidden_size
    hidden = groups * (heads // kv) * own if tied else max(8, 8 * round(width * info.hidden_size / 8))
    return StudentShape(
        blocks=blocks,
        hidden_size=hidden,
        ffn_size=min(ffn, info.ffn_size),
        heads=groups * (heads // kv) if heads % kv == 0 else heads,
        kv_heads=groups,
    )


def image_sizes(layers: LayerTable, resolutions: Scales) -> list[Sizes | None]:
    """Image sizes to try; None: the model's own, where nothing else is possible.

    Other sizes need a model that convolves, and pools before its dense layers.
    """
    channels, height, width = layers.info.image_size
    last = np.flatnonzero(layers.kind == "conv")[-1:]
    dense = np.flatnonzero(layers.kind == "linear")[:1]
    pooled = len(last) and len(dense) and layers.inputs[dense[0]] == layers.outputs[last[0]]
    if layers.info.family != "cnn" or not height or not pooled:
        return [None]
    return [(channels, max(1, round(r * height)), max(1, round(r * width))) for r in resolutions]


def at_resolution(layers: LayerTable, image_size: Sizes) -> LayerTable:
    """The table for images of another size: every feature map shrinks with the image, rounded up as strides do."""
    _, height, width = layers.info.image_size
    spatial = np.isin(layers.kind, ("conv", "norm")) & (layers.positions > 0)
    stride = np.sqrt(height * width / layers.positions[spatial])
    rows = np.ceil(np.round(image_size[1] / stride, 6))
    columns = np.ceil(np.round(image_size[2] / stride, 6))
    return layers.change(spatial, positions=rows * columns).with_info(image_size=image_size)

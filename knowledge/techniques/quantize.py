"""Quantization: fewer bits for each number, on the ONNX file that ships."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Choices, Family, Level, Need, Phase, Range, Technique
from knowledge.values import Decision


class Quantization(Technique):
    """Base of the techniques that change how a layer's numbers are stored."""

    family: ClassVar[Family] = Family.QUANTIZE
    level: ClassVar[Level] = Level.GRAPH
    phase: ClassVar[Phase] = Phase.QUANTIZE

    def formatted(self, layers: LayerTable) -> LayerTable:
        """The table in the format that this technique aims at, where no decision is known."""
        raise TypeError(f"{type(self).__name__} does not declare its format")

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        if decision is None:
            return self.formatted(layers)
        where = np.isin(layers.path, list(decision.formats))
        formats = [decision.formats[path] for path in layers.path[where]]
        columns = ("bits", "group_size", "scale_bits", "zero_bits", "bias_bits")
        return layers.change(where, **{c: [getattr(f, c) for f in formats] for c in columns})


class Int8(Quantization):
    """Base of the 8-bit forms: embeddings are a choice of their own, where there are any."""

    @classmethod
    def space_for(cls, layers: LayerTable) -> dict[str, Range | Choices]:
        space = cls.space()
        if not (layers.kind == "embedding").any():
            space.pop("embeddings", None)
        return space

    def formatted(self, layers: LayerTable) -> LayerTable:
        return layers.change(self.touches(layers), bits=8, scale_bits=32, zero_bits=8)


class Fp16(Quantization):
    """Store and compute in half precision: half the bytes, and faster only where the target computes in it."""

    id: ClassVar[str] = "fp16"
    paper: ClassVar[str] = "arXiv:1710.03740"

    def formatted(self, layers: LayerTable) -> LayerTable:
        return layers.change(self.touches(layers), bits=16, bias_bits=16)


class Int8Dynamic(Int8):
    """Store dense and recurrent weights as 8-bit integers per channel; measure activation ranges as the model runs.

    No calibration of ranges is needed. Activations become unsigned 8-bit integers per tensor at run time
    (arXiv:1712.05877 for the arithmetic). `smooth` migrates outliers from activations to weights before
    (arXiv:2211.10438; a strength of 0 leaves them). Convolutions are left in float: measured slower than float
    dynamically.
    """

    id: ClassVar[str] = "int8_dynamic"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    paper: ClassVar[str] = "arXiv:1712.05877"
    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe", "rnn"})

    embeddings: Annotated[bool, Choices(True, False)] = True
    smooth: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.9, step=0.1)] = 0.0

    def touches(self, layers: LayerTable) -> BoolColumn:
        chosen = np.isin(layers.kind, ("linear", "lstm"))
        return chosen | (layers.kind == "embedding") if self.embeddings else chosen

    def requirement(self) -> str:
        return "dense or recurrent layers"

    def strength(self) -> float:
        return 1 - self.smooth


class Int8Static(Int8):
    """Store weights as 8-bit integers per channel and activations as 8-bit integers with ranges from calibration data.

    Explicit quantize and dequantize nodes around convolutions, dense layers and additions, which the runtime turns into
    integer kernels (arXiv:1712.05877; per-channel weights as in arXiv:1806.08342). Ranges are the extremes seen, or a
    high percentile of them.
    """

    id: ClassVar[str] = "int8_static"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    paper: ClassVar[str] = "arXiv:1806.08342"

    calibration: Annotated[Literal["minmax", "percentile"], Choices("minmax", "percentile")] = "minmax"
    embeddings: Annotated[bool, Choices(True, False)] = True
    smooth: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.9, step=0.1)] = (
        0.0  # as in int8_dynamic; dense layers only
    )

    def touches(self, layers: LayerTable) -> BoolColumn:
        chosen = np.isin(layers.kind, ("linear", "conv"))
        return chosen | (layers.kind == "embedding") if self.embeddings else chosen

    def requirement(self) -> str:
        return "convolutions or dense layers"

"""Quantization: fewer bits for each number, on the ONNX file that ships."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from knowledge.formats import stored_as
from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Choices, Epochs, Family, Level, Need, Phase, Range, Technique
from knowledge.values import Decision, Refusal

STATIC_NODE_BYTES = {"linear": 430, "conv": 900}  # quantize and dequantize steps of inputs, weights and outputs


class Quantization(Technique):
    """Base of the techniques that change how a layer's numbers are stored."""

    family: ClassVar[Family] = Family.QUANTIZE
    level: ClassVar[Level] = Level.GRAPH
    phase: ClassVar[Phase] = Phase.QUANTIZE
    # bytes of the graph around one quantized layer, by kind, beside those of the float layer; measured on the embedded
    # models: python -m benchmarks.calibration
    node_bytes: ClassVar[Mapping[str, int]] = {}

    def formatted(self, layers: LayerTable) -> LayerTable:
        """The table in the format that this technique aims at, where no decision is known."""
        raise TypeError(f"{type(self).__name__} does not declare its format")

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        if decision is None:
            return self.formatted(layers)
        return stored_as(layers, decision.formats)


Embeddings = Annotated[bool, Choices(True, False)]
Smooth = Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.9, step=0.1)]
FloatShare = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="share of the weights in dense layers and convolutions that stays in float, in the layers that 8 "
        "bits hurt most by measurement",
    ),
    Range(0.0, 0.2, step=0.05),
]


def left_of_loss(float_share: float) -> float:
    """What is left of the loss when the most sensitive layers stay in float.

    Measured on MiniLM, without `smooth` and with 0.8: a tenth of the weights leaves 0.66 and 0.76 of the loss, a fifth
    0.51 and 0.45, three tenths 0.37 and 0.32; a fifth chosen at random 0.9.

    >>> [round(left_of_loss(share), 2) for share in (0.0, 0.1, 0.2, 0.3)]
    [1.0, 0.73, 0.51, 0.34]
    """
    return (1 - float_share) ** 3


class Int8(Quantization):
    """Base of the 8-bit forms: embeddings are a choice of their own, where there are any."""

    computed: ClassVar[tuple[str, ...]] = ("linear", "conv")  # kinds of layers that compute in integers
    may_stay: ClassVar[tuple[str, ...]] = ()  # kinds of which the most sensitive can stay in float

    def touches(self, layers: LayerTable) -> BoolColumn:
        kinds = (*self.computed, "embedding") if getattr(self, "embeddings", False) else self.computed
        return np.isin(layers.kind, kinds)

    @classmethod
    def space_for(cls, layers: LayerTable) -> dict[str, Range | Choices]:
        space = cls.space()
        if not (layers.kind == "embedding").any():
            space.pop("embeddings", None)
        if not np.isin(layers.kind, cls.may_stay).any():
            space.pop("float_share", None)
        return space

    def expected_float(self, layers: LayerTable) -> BoolColumn:
        """As many weights as may stay in float, wherever they are: which ones those are only data can tell."""
        stays = np.zeros(len(layers), dtype=bool)
        candidates = np.flatnonzero(np.isin(layers.kind, self.may_stay) & layers.owned)
        room = getattr(self, "float_share", 0.0) * layers.weights[candidates].sum()
        for row in candidates if room else ():
            if layers.weights[row] <= room:
                stays[row] = True
                room -= layers.weights[row]
        return stays

    def formatted(self, layers: LayerTable) -> LayerTable:
        integer = self.touches(layers) & ~self.expected_float(layers)
        return layers.change(integer, bits=8, scale_bits=32, zero_bits=8)


class Half(Quantization):
    """Base of the 16-bit forms: every number takes half the bytes."""

    def formatted(self, layers: LayerTable) -> LayerTable:
        return layers.change(self.touches(layers), bits=16, bias_bits=16)


class Fp16(Half):
    """Store and compute in half precision: half the bytes, and faster only where the target computes in it."""

    id: ClassVar[str] = "fp16"
    paper: ClassVar[str] = "arXiv:1710.03740"


class Bf16(Half):
    """Store in bfloat16: half the bytes and the range of fp32, with 8 bits of precision where fp16 has 11.

    For models whose activations leave fp16's range, on targets that compute in it (arXiv:1905.12322).
    """

    id: ClassVar[str] = "bf16"
    paper: ClassVar[str] = "arXiv:1905.12322"


class Int8Dynamic(Int8):
    """Store dense and recurrent weights as 8-bit integers per channel; measure activation ranges as the model runs.

    No calibration of ranges is needed. Activations become unsigned 8-bit integers per tensor at run time
    (arXiv:1712.05877 for the arithmetic). `smooth` migrates outliers from activations to weights before
    (arXiv:2211.10438; a strength of 0 leaves them). `float_share` leaves the layers in float that 8 bits hurt most:
    each is rounded alone on calibration data, and the error of the model's outputs tells. Convolutions are left in
    float: measured slower than float dynamically.
    """

    id: ClassVar[str] = "int8_dynamic"
    node_bytes: ClassVar[Mapping[str, int]] = {"linear": 60, "lstm": 100}
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    paper: ClassVar[str] = "arXiv:1712.05877"
    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe", "rnn"})

    computed: ClassVar[tuple[str, ...]] = ("linear", "lstm")
    may_stay: ClassVar[tuple[str, ...]] = ("linear",)

    embeddings: Embeddings = True
    smooth: Smooth = 0.0
    float_share: FloatShare = 0.0

    def requirement(self) -> str:
        return "dense or recurrent layers"

    def strength(self) -> float:
        return (1 - self.smooth) * left_of_loss(self.float_share)


class Int8Static(Int8):
    """Store weights as 8-bit integers per channel and activations as 8-bit integers with ranges from calibration data.

    Explicit quantize and dequantize nodes around convolutions, dense layers and additions, which the runtime turns into
    integer kernels (arXiv:1712.05877; per-channel weights as in arXiv:1806.08342). Ranges are the extremes seen, or a
    high percentile of them. `float_share` leaves the layers in float that 8 bits hurt most, as in int8_dynamic.
    """

    id: ClassVar[str] = "int8_static"
    node_bytes: ClassVar[Mapping[str, int]] = STATIC_NODE_BYTES
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    paper: ClassVar[str] = "arXiv:1806.08342"

    may_stay: ClassVar[tuple[str, ...]] = ("linear", "conv")

    calibration: Annotated[Literal["minmax", "percentile"], Choices("minmax", "percentile")] = "minmax"
    embeddings: Embeddings = True
    smooth: Smooth = 0.0  # as in int8_dynamic; dense layers only
    float_share: FloatShare = 0.0  # as in int8_dynamic; convolutions too

    def requirement(self) -> str:
        return "convolutions or dense layers"

    def strength(self) -> float:
        return (1 - self.smooth) * left_of_loss(self.float_share)


class Qat(Int8):
    """Train with the rounding of 8-bit weights and activations in the loop, then store what the training settled on.

    Ranges come from calibration inputs first; then every forward pass rounds, and gradients pass straight through
    (arXiv:1712.05877, section 3). Batch norms are folded before. The result is the file that int8_static makes, with
    weights that expect it; what static quantization loses beyond the budget is what this wins back.
    """

    id: ClassVar[str] = "qat"
    node_bytes: ClassVar[Mapping[str, int]] = STATIC_NODE_BYTES
    level: ClassVar[Level] = Level.MODEL
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.UNLABELED, Need.TRAINING})
    paper: ClassVar[str] = "arXiv:1712.05877"
    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe", "cnn"})
    starts_from: ClassVar[str] = "int8_static"

    embeddings: Embeddings = True
    epochs: Epochs = 3
    learning_rate: Annotated[float, Field(gt=0), Range(1e-5, 1e-3, log=True)] = 1e-4

    def requirement(self) -> str:
        return "convolutions or dense layers"


class ComplexInt8(Int8):
    """Store a complex core as 8-bit integers, with scales of their own for real and imaginary parts of each channel.

    The two parts have different ranges: one scale for both wastes bits of the narrower. Ranges of the activations come
    from calibration data, part by part. Dense layers around the core are stored as int8_static does. The arithmetic is
    that of arXiv:1712.05877; scales per channel are those of "Step 4: Advanced Model Compression", section 2.
    """

    id: ClassVar[str] = "complex_int8"
    level: ClassVar[Level] = Level.MODEL
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    paper: ClassVar[str] = "arXiv:1712.05877"
    computed: ClassVar[tuple[str, ...]] = ("complex", "linear")

    embeddings: Embeddings = True

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        if layers.info.subfamily != "complex" or not (layers.kind == "complex").any():
            yield Refusal(
                technique=self.id,
                rule="quantize-no-complex-core",
                observed="a model that computes in real numbers",
                required="a model with a complex core",
                remedy="use int8_dynamic or int8_static",
            )
        else:
            yield from super().refusals(layers)

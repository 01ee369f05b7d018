"""Different layers in different formats: experts narrower than the rest, sensitive layers wider."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Choices, Need, Range
from knowledge.techniques.groups import ASYMMETRIC_GAIN, SCALE_BITS, GroupWeights, Symmetric, grouped_width


class ExpertsInt4(GroupWeights):
    """Store the weights of every expert in 4 bits, in groups of a row; attention layers in `dense_bits`.

    Each expert is rounded on its own. The router stays in float: a token sent to another expert costs more than any
    rounding. Experts hold most of such a model's bytes and few of them work on a token: memory is what is won.
    arXiv:2310.16795 on how well experts bear few bits.
    """

    id: ClassVar[str] = "experts_int4"
    paper: ClassVar[str] = "arXiv:2310.16795"
    architectures: ClassVar[frozenset[str]] = frozenset({"moe"})

    symmetric: Symmetric = True
    dense_bits: Annotated[Literal[8, 32], Choices(8, 32)] = 8

    @classmethod
    def dense(cls, layers: LayerTable) -> BoolColumn:
        chosen: BoolColumn = layers.kind == "experts"
        return chosen

    def attention(self, layers: LayerTable) -> BoolColumn:
        """The other dense layers, where they are stored in fewer bits too."""
        plain = super().dense(layers) & (layers.role != "router") & (grouped_width(layers) >= self.group_size)
        return plain if self.dense_bits < 32 else np.zeros(len(layers), dtype=bool)

    def touches(self, layers: LayerTable) -> BoolColumn:
        return super().touches(layers) | self.attention(layers)

    def requirement(self) -> str:
        return f"experts at least {self.group_size} wide"

    def zero_bits(self, bits: int) -> int:
        return 0 if self.symmetric else bits

    def body_formatted(self, layers: LayerTable) -> LayerTable:
        return self.grouped(super().body_formatted(layers), self.attention(layers), self.dense_bits)

    def strength(self) -> float:
        return super().strength() * (ASYMMETRIC_GAIN if self.symmetric else 1.0)


class MixedPrecision(GroupWeights):
    """Store `share` of the weights narrow and the layers that lose most by it wide, as calibration data tell.

    Dense layers: 4 bits in groups, or 8 where they are sensitive. Convolutions and recurrent layers, which have no
    4-bit kernel: 8 bits per channel, or float. Each layer is narrowed alone and the loss measured; the least sensitive
    go first (arXiv:1911.03852 ranks by curvature instead). Until then the layers nearest to the middle of the model
    count as narrow, since first and last ones are the usual sensitive ones.
    """

    id: ClassVar[str] = "mixed_precision"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    paper: ClassVar[str] = "arXiv:1911.03852"
    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe", "cnn", "rnn"})
    dial: ClassVar[str] = "share"

    share: Annotated[float, Field(gt=0, le=1), Range(0.5, 1.0, step=0.1)] = 0.8

    @classmethod
    def dense(cls, layers: LayerTable) -> BoolColumn:
        experts: BoolColumn = (layers.kind == "experts") & layers.owned
        chosen: BoolColumn = (super().dense(layers) & (layers.role != "router")) | experts
        return chosen

    @staticmethod
    def per_channel(layers: LayerTable) -> BoolColumn:
        """Layers that are stored with a scale for each channel."""
        chosen: BoolColumn = np.isin(layers.kind, ("conv", "lstm"))
        return chosen

    def body(self, layers: LayerTable) -> BoolColumn:
        return super().body(layers) | self.per_channel(layers)

    def requirement(self) -> str:
        return f"{super().requirement()}, convolutions or recurrent layers"

    def zero_bits(self, bits: int) -> int:
        return bits

    def narrow(self, layers: LayerTable) -> BoolColumn:
        """Layers of the body that count as narrow: from the middle outwards, until they hold `share` of its weights."""
        body = np.flatnonzero(self.body(layers))
        outwards = body[np.argsort(np.abs(np.arange(len(body)) - (len(body) - 1) / 2), kind="stable")]
        weights = layers.weights[outwards]
        chosen = np.zeros(len(layers), dtype=bool)
        chosen[outwards[np.cumsum(weights) - weights / 2 <= self.share * weights.sum()]] = True
        return chosen

    def body_formatted(self, layers: LayerTable) -> LayerTable:
        narrow, channels = self.narrow(layers), self.per_channel(layers)
        changed = self.grouped(layers, narrow & ~channels, 4)
        changed = self.grouped(changed, self.body(layers) & ~narrow & ~channels, 8)
        return changed.change(narrow & channels, bits=8, scale_bits=SCALE_BITS, zero_bits=8)

    def strength(self) -> float:
        return super().strength() * self.share**2

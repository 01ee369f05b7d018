"""Low-rank factorization: one matrix becomes the product of two thin ones."""

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Family, Level, Phase, Range, Technique
from knowledge.values import Decision

FACTORED_ROLES = (
    *("attention_q", "attention_k", "attention_v", "attention_qkv", "attention_o"),
    *("ffn_up", "ffn_gate", "ffn_down", "body"),
)


def break_even_rank(outputs: NDArray[np.int64], inputs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rank at which two factors hold as many numbers as the matrix: mn / (m + n).

    >>> break_even_rank(np.array([4096]), np.array([4096])).tolist()
    [2048.0]
    """
    return outputs * inputs / (outputs + inputs)


class Svd(Technique):
    """Replace dense layers by two thin ones from a truncated singular value decomposition, only where that is smaller.

    `ratio` is a share of the break-even rank mn / (m + n), not of the full rank: half of the full rank of a square
    layer saves nothing. With `energy`, each layer keeps the smallest rank that holds this share of the squared singular
    values, whatever the ratio, and layers where that rank is not below break-even stay whole. Which rank that is, is
    unknown until the weights are read: until then all layers count as whole, an upper bound. Eckart and Young, 1936.
    """

    id: ClassVar[str] = "svd"
    family: ClassVar[Family] = Family.FACTORIZE
    level: ClassVar[Level] = Level.MODEL
    phase: ClassVar[Phase] = Phase.FACTORIZE
    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe"})
    paper: ClassVar[str] = "doi:10.1007/BF02288367"
    dial: ClassVar[str] = "ratio"

    ratio: Annotated[float, Field(gt=0, lt=1), Range(0.2, 0.9, step=0.1)] = 0.6
    energy: Annotated[float, Field(gt=0, lt=1)] | None = None
    min_width: Annotated[int, Field(ge=1)] = 64  # narrower layers are left alone

    def touches(self, layers: LayerTable) -> BoolColumn:
        wide = np.minimum(layers.outputs, layers.inputs) >= self.min_width
        plain: BoolColumn = (layers.kind == "linear") & (layers.rank == 0) & layers.owned
        chosen: BoolColumn = plain & wide & np.isin(layers.role, FACTORED_ROLES)
        return chosen

    def requirement(self) -> str:
        return f"dense layers at least {self.min_width} wide on both sides"

    def strength(self) -> float:
        return 1 - self.ratio if self.energy is None else 0.0

    def rank(self, outputs: NDArray[np.int64], inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rank by ratio of the break-even rank, at least 1."""
        return np.maximum(1, np.floor(self.ratio * break_even_rank(outputs, inputs))).astype(np.int64)

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        if decision is not None:
            where = np.isin(layers.path, list(decision.ranks))
            return layers.change(where, rank=[decision.ranks[path] for path in layers.path[where]])
        if self.energy is not None:
            return layers
        where = self.touches(layers)
        ranks = self.rank(layers.outputs[where], layers.inputs[where])
        return layers.change(where, rank=ranks)

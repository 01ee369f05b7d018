"""Pruning that sets single weights to zero. Shapes stay; so does the size of a dense file."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Choices, Family, Level, Phase, Range, Technique
from knowledge.values import Decision


class Magnitude(Technique):
    """Set the weights with the smallest absolute value to zero, over the whole model or layer by layer.

    The file stays as large and as slow as before wherever the runtime multiplies zeros like other numbers; the gain is
    in the compressed download. Masks are kept through later training. How many weights lie below a `threshold` is
    unknown until the weights are read: until then it counts as none. arXiv:1510.00149, section 2.
    """

    id: ClassVar[str] = "magnitude"
    family: ClassVar[Family] = Family.PRUNE
    level: ClassVar[Level] = Level.MODEL
    phase: ClassVar[Phase] = Phase.PRUNE
    paper: ClassVar[str] = "arXiv:1510.00149"
    dial: ClassVar[str] = "ratio"

    scope: Annotated[Literal["global", "local"], Choices("global", "local")] = "global"
    ratio: Annotated[float, Field(gt=0, lt=1), Range(0.2, 0.9, step=0.05)] = 0.5
    threshold: Annotated[float, Field(gt=0)] | None = None  # given: |w| below it goes, whatever ratio and scope say

    def strength(self) -> float:
        return self.ratio if self.threshold is None else 0.0

    def touches(self, layers: LayerTable) -> BoolColumn:
        return np.isin(layers.kind, ("linear", "conv", "lstm", "experts")) & layers.owned

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        if decision is not None:
            where = np.isin(layers.path, list(decision.density))
            density = [decision.density[path] for path in layers.path[where]]
            return layers.change(where, density=density, pattern="unstructured")
        if self.threshold is not None:
            return layers
        where = self.touches(layers)
        return layers.change(where, density=np.minimum(layers.density[where], 1 - self.ratio), pattern="unstructured")

"""Graph fusion: the same numbers in fewer kernels."""

from typing import ClassVar

from knowledge.layers import LayerTable
from knowledge.techniques.base import Family, Level, Phase, Technique
from knowledge.values import Decision


class GraphFusion(Technique):
    """Merge operators that the runtime can execute as one, without changing a weight; kept only where it is faster."""

    id: ClassVar[str] = "graph_fusion"
    family: ClassVar[Family] = Family.FUSE
    level: ClassVar[Level] = Level.GRAPH
    phase: ClassVar[Phase] = Phase.FUSE
    lossless: ClassVar[bool] = True

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        return layers

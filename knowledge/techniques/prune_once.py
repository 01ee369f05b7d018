"""One-shot pruning of language models by what their layers read: no training, a few calibration texts."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Choices, Need, Range
from knowledge.techniques.patterns import Pattern, kept_of, pattern_strength
from knowledge.techniques.prune import ScheduledPruning
from knowledge.values import Refusal


class OneShotPruning(ScheduledPruning):
    """Base of the one-shot techniques: dense layers and experts lose `ratio` of their weights, or all but N of M.

    With a `pattern` N:M the ratio is given by it, and layers whose inputs it does not divide stay whole. Heads, routers
    and embeddings stay.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe"})

    ratio: Annotated[float, Field(gt=0, lt=1), Range(0.2, 0.8, step=0.05)] = 0.5
    pattern: Annotated[Pattern, Choices("unstructured", "2:4", "4:8")] = "unstructured"

    def touches(self, layers: LayerTable) -> BoolColumn:
        dense = np.isin(layers.kind, ("linear", "experts")) & ~np.isin(layers.role, ("head", "router")) & layers.owned
        _, among = kept_of(self.pattern)
        chosen: BoolColumn = dense & (layers.inputs % among == 0) if among else dense
        return chosen

    def requirement(self) -> str:
        _, among = kept_of(self.pattern)
        return f"dense layers whose inputs divide by {among}" if among else "dense layers"

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        yield from super().refusals(layers)
        if self.pattern != "unstructured" and self.layer_ratios:
            yield Refusal(
                technique=self.id,
                rule="prune-two-ratios",
                observed=f"pattern {self.pattern} and ratios by layer",
                required="one of the two: the pattern fixes the ratio of every layer",
                remedy="leave out layer_ratios, or take the pattern unstructured",
            )

    def pattern_name(self) -> str:
        return self.pattern

    def strength(self) -> float:
        return pattern_strength(self.pattern, super().strength())

    def removed(self, layers: LayerTable, where: BoolColumn) -> NDArray[np.float64] | float:
        kept, among = kept_of(self.pattern)
        return 1 - kept / among if among else super().removed(layers, where)


class Wanda(OneShotPruning):
    """Set the weights with the smallest |w| · ‖x‖₂ to zero, each compared within its own output row.

    ‖x‖₂ is the norm of the input feature over all calibration tokens. One pass over the data, no weight is changed
    beside those that go (arXiv:2306.11695, section 3). Speed follows only where the runtime uses the pattern.
    """

    id: ClassVar[str] = "wanda"
    paper: ClassVar[str] = "arXiv:2306.11695"


class SparseGpt(OneShotPruning):
    """Set weights to zero column by column, and move the remaining ones so that each layer's outputs change least.

    Score: w² / [H⁻¹]ⱼⱼ with H from the calibration inputs, the update from the same inverse (arXiv:2301.00774,
    section 3). `damping` is added to the diagonal of H, as a share of its mean. More work than Wanda, and closer to the
    original in high ratios and N:M patterns.
    """

    id: ClassVar[str] = "sparsegpt"
    paper: ClassVar[str] = "arXiv:2301.00774"

    damping: Annotated[float, Field(gt=0)] = 0.01

"""One-shot pruning by what the layers read: no training, a few calibration samples."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from knowledge.formats import stored_as
from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Choices, Need, Range
from knowledge.techniques.groups import SCALE_BITS, AccuracyLevel, grouped_width, rounding_loss
from knowledge.techniques.patterns import DENSE, Pattern
from knowledge.techniques.prune import PatternPruning
from knowledge.values import Decision

ROUNDING_STRENGTH = 0.0073  # zoo:stdlib-gpt2: half the weights, the rest in 2 bits, lose what 60 % lose in float

# of outliers their authors' (arXiv:2310.05175, the README); of losses ours: with 0.08 every embedded model loses more,
# but for zoo:stdlib-lm and zoo:stdlib-lm-large with Wanda
BOUNDS = {"uniform": 0.0, "outliers": 0.08, "sensitivity": 0.15}

Allocation = Annotated[
    Literal["uniform", "outliers", "sensitivity"],
    Choices("uniform", "sensitivity", "outliers"),
    Field(
        description="how the zeros are shared: uniform; outliers: blocks, fewer where more weights times inputs are "
        "far over their mean; sensitivity: layers, by what the model's outputs lose when one alone is pruned"
    ),
]


class OneShotPruning(PatternPruning):
    """Base of the one-shot techniques: dense layers and experts lose `ratio` of their weights, or all but N of M.

    Of convolutional models also convolutions, each as the matrix that multiplies unfolded inputs; those in groups stay
    whole. With a `pattern` N:M the ratio is given by it, and layers whose inputs it does not divide stay whole. Heads,
    routers and embeddings stay. `allocation` gives them ratios of their own, `bound` at most from `ratio`, which stays
    that of all weights together: blocks by outliers, as arXiv:2310.05175 does in section 3.2, or layers by sensitivity.
    For that each layer alone is pruned to four ratios and the change of the outputs measured; the measurements are
    kept, and an integer program picks the ratios with the least sum of losses, for any total.

    With a `max_loss` the total is the largest found with which the model as a whole loses no more on calibration data,
    and `ratio` only what is expected. The search for it, in a few models, begins at the sum of the layers' losses:
    pruned layers read what pruned layers give, and together lose more or less than that. On other data the model loses
    otherwise, the more so the fewer the calibration data are.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe", "cnn"})

    ratio: Annotated[float, Field(gt=0, lt=1), Range(0.2, 0.8, step=0.05)] = 0.5
    pattern: Annotated[Pattern, Choices("unstructured", "2:4", "4:8")] = DENSE
    allocation: Allocation = "uniform"
    bound: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="how far a layer's ratio may be from the common one; without it 0.08 by outliers, 0.15 by "
            "sensitivity",
        ),
    ] = None
    max_loss: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="what the model may lose on calibration data, in nats, or 1 − cosine of vectors: the most "
            "zeros within it; without it `ratio` sets the zeros",
        ),
    ] = None

    @classmethod
    def space_for(cls, layers: LayerTable) -> dict[str, Range | Choices]:
        """Outliers tell of language models: convolutions lose more by them than by one ratio (zoo:digits-cnn)."""
        space = cls.space()
        if layers.info.family == "cnn":
            space["allocation"] = Choices("uniform", "sensitivity")
        return space

    @classmethod
    def together(cls, params: dict[str, Any]) -> dict[str, Any]:
        if params.get("pattern", DENSE) != DENSE:
            return {**params, "allocation": "uniform"}
        return params

    def farthest(self) -> float:
        """The bound, or the usual one of the allocation."""
        return BOUNDS[self.allocation] if self.bound is None else self.bound

    def touches(self, layers: LayerTable) -> BoolColumn:
        dense = np.isin(layers.kind, ("linear", "experts")) & ~np.isin(layers.role, ("head", "router"))
        chosen: BoolColumn = (dense | self.convolutions(layers)) & layers.owned & self.divides(layers)
        return chosen

    def convolutions(self, layers: LayerTable) -> BoolColumn:
        """Rows that are convolutions of one group, where the model is made of convolutions."""
        chosen: BoolColumn = (layers.kind == "conv") & (layers.groups == 1) & (layers.info.family == "cnn")
        return chosen

    def requirement(self) -> str:
        among = self.kept()[1]
        return f"dense layers whose inputs divide by {among}" if among else "dense layers"

    def ratios_set(self) -> dict[str, str]:
        more = {} if self.allocation == "uniform" else {f"allocation {self.allocation}": "take the allocation uniform"}
        if self.max_loss is not None:  # an allocation shares out what it allows
            more = {f"max_loss {self.max_loss:g}": "leave out max_loss"}
        return super().ratios_set() | more


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
    original in high ratios and N:M patterns. With fewer `bits` than 32 what stays of a dense layer is rounded in the
    same pass, and the columns that follow make up for both (section 3.5).
    """

    id: ClassVar[str] = "sparsegpt"
    paper: ClassVar[str] = "arXiv:2301.00774"

    damping: Annotated[float, Field(gt=0)] = 0.01
    bits: Annotated[
        Literal[32, 8, 4, 3, 2],
        Field(description="of a weight that stays in a dense layer; 3 are stored in 4, 32 is float"),
    ] = 32
    group_size: Annotated[
        Literal[16, 32, 64, 128, 256], Field(description="weights of a row that share a scale, with fewer bits than 32")
    ] = 128
    accuracy_level: AccuracyLevel = 4

    def strength(self) -> float:
        rounding = rounding_loss(self.bits, self.group_size) if self.bits < 32 else 0.0
        return super().strength() + ROUNDING_STRENGTH * rounding

    def rounded(self, layers: LayerTable) -> BoolColumn:
        """Rows that are stored in groups: dense layers at least a group wide."""
        wide = grouped_width(layers) >= self.group_size
        chosen: BoolColumn = self.touches(layers) & (layers.kind == "linear") & wide & (self.bits < 32)
        return chosen

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        pruned = super().effect(layers, decision)
        if decision is not None:
            return stored_as(pruned, decision.formats)
        stored = 4 if self.bits == 3 else self.bits
        form = {"bits": stored, "group_size": self.group_size, "scale_bits": SCALE_BITS, "zero_bits": stored}
        return pruned.change(self.rounded(layers), **form)

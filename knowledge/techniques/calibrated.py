"""Weights in groups, rounded by what the layers read on calibration data: GPTQ and AWQ."""

from typing import Annotated, ClassVar

from pydantic import Field

from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Level, Need
from knowledge.techniques.groups import IntegerGroups
from knowledge.techniques.units import whole_experts

EXACT = (4, 3)  # bits of experts that ONNX Runtime's QMoE multiplies in float at level 0; measured, 1e-7 against 1e-2


class CalibratedGroups(IntegerGroups):
    """Base of the forms that are rounded by data: dense layers, and every expert by the tokens that are sent to it.

    All experts of a block are one operator in the file, whose rows divide into whole groups. It rounds what it reads to
    8 bits where its weights have 8 or 2, at every accuracy level: a level of 0 leaves such experts in float.
    """

    level: ClassVar[Level] = Level.MODEL
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    stacks: ClassVar[bool] = True

    include_experts: Annotated[
        bool, Field(description="experts of a mixture too, as far as their rows divide into whole groups")
    ] = True

    @classmethod
    def dense(cls, layers: LayerTable) -> BoolColumn:
        experts: BoolColumn = (layers.kind == "experts") & layers.owned
        return super().dense(layers) | experts

    def stores_experts(self) -> bool:
        """Whether they are to be stored in groups, and can be at this accuracy level."""
        return self.include_experts and (self.accuracy_level > 0 or self.bits in EXACT)

    def body(self, layers: LayerTable) -> BoolColumn:
        wide: BoolColumn = super().body(layers) & (layers.kind != "experts")
        return wide | whole_experts(layers, self.group_size) if self.stores_experts() else wide

    def experts_in_float(self) -> tuple[str, str] | None:
        if not self.include_experts:
            return None
        if not self.stores_experts():
            return "groups-experts-in-integers", "3 or 4 bits at accuracy_level 0: others round activations to 8 bits"
        return super().experts_in_float()


class Gptq(CalibratedGroups):
    """Round weights column by column, moving those not yet rounded so that each layer's outputs change least.

    The update comes from the inverse Hessian of the layer's calibration inputs; `damping` is added to the Hessian's
    diagonal as a share of its mean (arXiv:2210.17323, section 4). `reorder` rounds the columns with the largest inputs
    first, as --act-order of the authors' code does (https://github.com/IST-DASLab/gptq). Experts have a Hessian each.
    """

    id: ClassVar[str] = "gptq"
    paper: ClassVar[str] = "arXiv:2210.17323"

    reorder: bool = False
    damping: Annotated[float, Field(gt=0)] = 0.01


class Awq(CalibratedGroups):
    """Scale up the weight channels with the largest activations before rounding, and their inputs down.

    The scale is a power of the channel's activation, its exponent the best of `grid` values for the layers' outputs on
    calibration data; the division goes into the norm before, or is a multiplication of the inputs where there is none
    (arXiv:2306.00978, section 3). `clip` cuts outliers of the weights off where that loses less, as the authors' code
    does (https://github.com/mit-han-lab/llm-awq). The down projection of an expert has a scale of its own, and the
    division goes into its up projection; up projections, which share what they read with the router, have none.
    """

    id: ClassVar[str] = "awq"
    paper: ClassVar[str] = "arXiv:2306.00978"

    grid: Annotated[int, Field(ge=2, description="exponents that are tried")] = 20
    clip: bool = True  # cut the range of each group to the share that loses least; q and k keep theirs

"""Recovery: training that wins back what a lossy stage cost."""

from collections.abc import Iterator
from typing import ClassVar

from knowledge.layers import LayerTable
from knowledge.techniques.base import Epochs, Family, LearningRate, Level, Need, Technique
from knowledge.values import Decision, Refusal


class Finetune(Technique):
    """Train the compressed model for a few epochs; zeros of a pruned model stay zero.

    With labels it minimizes the task's loss; where there are none it follows the original model's outputs. AdamW with a
    one-cycle schedule (arXiv:1711.05101, arXiv:1708.07120).
    """

    id: ClassVar[str] = "finetune"
    family: ClassVar[Family] = Family.RECOVER
    level: ClassVar[Level] = Level.MODEL
    phase: ClassVar[None] = None
    needs: ClassVar[frozenset[Need]] = frozenset({Need.UNLABELED, Need.TRAINING})
    paper: ClassVar[str] = "arXiv:1711.05101"

    epochs: Epochs = 3
    learning_rate: LearningRate = 3e-4

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        yield from super().refusals(layers)
        if (rounded := layers.path[layers.group_size > 0]).size:
            yield Refusal(
                technique=self.id,
                rule="recover-rounded",
                observed=f"weights that are rounded, such as {rounded[0]}",
                required="weights that may move: training would leave the values that the file can store",
                remedy="train before rounding",
            )

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        return layers

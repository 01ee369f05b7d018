"""Recovery: training that wins back what a lossy stage cost."""

from typing import ClassVar

from knowledge.layers import LayerTable
from knowledge.techniques.base import Epochs, Family, LearningRate, Level, Need, Technique
from knowledge.values import Decision


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

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        return layers

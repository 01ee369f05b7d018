"""Distillation: a smaller student learns from the model it replaces."""

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from knowledge.layers import LayerTable
from knowledge.techniques.base import Epochs, Family, LearningRate, Level, Need, Phase, Range, Technique
from knowledge.values import Decision, Refusal

Compression = Annotated[float, Field(gt=1), Range(1.5, 4.0, step=0.25)]


class Distillation(Technique):
    """Base of the techniques that train a student with `compression` times fewer parameters."""

    family: ClassVar[Family] = Family.DISTILL
    level: ClassVar[Level] = Level.MODEL
    phase: ClassVar[Phase] = Phase.DISTILL
    needs: ClassVar[frozenset[Need]] = frozenset({Need.UNLABELED, Need.TRAINING})
    dial: ClassVar[str] = "compression"

    compression: Compression = 2.0

    def strength(self) -> float:
        return math.log2(self.compression)

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        from knowledge.students import largest_compression

        yield from super().refusals(layers)
        limit = largest_compression(layers)
        if self.compression > limit:
            yield Refusal(
                technique=self.id,
                rule="distill-too-small",
                observed=f"the smallest student is {limit:.2f} times smaller: what it must keep is the rest",
                required=f"{self.compression:g} times fewer parameters",
                remedy=f"ask for a compression of at most {int(100 * limit) / 100:g}" if limit > 1.01 else "",
            )

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        from knowledge.students import resize, student_table

        known = decision.student if decision is not None else None
        return resize(layers, known) if known is not None else student_table(layers, self.compression)


class Distill(Distillation):
    """Train a student with `compression` times fewer parameters on the original model's softened outputs.

    Loss: alpha · T² · KL(teacher‖student at temperature T) + (1 − alpha) · the task's own loss, averaged over
    unmasked positions (arXiv:1503.02531, section 2). The student's dimensions are solved on the exact parameter count,
    and it starts from the teacher's weights where shapes allow. Embedding models match the teacher's vectors instead.
    """

    id: ClassVar[str] = "distill"
    paper: ClassVar[str] = "arXiv:1503.02531"

    temperature: Annotated[float, Field(gt=0), Range(1.0, 6.0, step=0.5)] = 2.0
    alpha: Annotated[float, Field(ge=0, le=1), Range(0.3, 0.9, step=0.1)] = 0.7
    epochs: Epochs = 3
    learning_rate: LearningRate = 3e-4


class TextDistillation(Distillation):
    """Base of the distillations that learn from what was written: for models that write text."""

    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe"})

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        if layers.info.family in self.architectures and layers.info.task != "causal-lm":
            yield Refusal(
                technique=self.id,
                rule="distill-not-generative",
                observed=f"a model for {layers.info.task}",
                required="a causal language model, which writes what it learns from",
                remedy="use distill, which follows the outputs of any model",
            )
        else:
            yield from super().refusals(layers)


class MiniLlm(TextDistillation):
    """Train a student on text that it writes itself, judged by the original model: KL(student‖teacher).

    The reverse direction makes a student settle on what the teacher finds likely and leave out what it cannot do well;
    the forward one covers everything the teacher might say. Tokens are drawn from a mixture of both models, of which
    `teacher_share` is the teacher's, against text that only fools the loss, and long answers are not favored over short
    ones (arXiv:2306.08543, section 2). Over long training the two directions converge (arXiv:2404.02657).
    """

    id: ClassVar[str] = "minillm"
    paper: ClassVar[str] = "arXiv:2306.08543"

    teacher_share: Annotated[float, Field(ge=0, le=1), Range(0.0, 0.5, step=0.1)] = 0.2
    epochs: Epochs = 3
    learning_rate: LearningRate = 3e-4


class DistillText(TextDistillation):
    """Train a student on text that a teacher wrote, where its probabilities are out of reach, as behind an API.

    Sequence-level distillation: the task's own loss on the teacher's answers (arXiv:1606.07947, section 3.2). `texts`
    names a file of them; without one, the original model continues the training inputs and its answers are learned.
    The teacher may have another vocabulary.
    """

    id: ClassVar[str] = "distill_text"
    paper: ClassVar[str] = "arXiv:1606.07947"

    texts: str = ""
    epochs: Epochs = 3
    learning_rate: LearningRate = 3e-4

"""Distillation: a smaller student learns from the model it replaces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from knowledge.layers import LayerTable
from knowledge.techniques.base import Choices, Family, Level, Need, Phase, Range, Technique
from knowledge.values import Decision, Refusal


class Distill(Technique):
    """Train a student with `compression` times fewer parameters on the original model's softened outputs.

    Loss: alpha · T² · KL(teacher‖student at temperature T) + (1 − alpha) · the task's own loss, averaged over
    unmasked positions (arXiv:1503.02531, section 2). The student's dimensions are solved on the exact parameter count,
    and it starts from the teacher's weights where shapes allow. Embedding models match the teacher's vectors instead.
    """

    id: ClassVar[str] = "distill"
    family: ClassVar[Family] = Family.DISTILL
    level: ClassVar[Level] = Level.MODEL
    phase: ClassVar[Phase] = Phase.DISTILL
    needs: ClassVar[frozenset[Need]] = frozenset({Need.UNLABELED, Need.TRAINING})
    paper: ClassVar[str] = "arXiv:1503.02531"
    dial: ClassVar[str] = "compression"

    compression: Annotated[float, Field(gt=1), Range(1.5, 4.0, step=0.25)] = 2.0
    temperature: Annotated[float, Field(gt=0), Range(1.0, 6.0, step=0.5)] = 2.0
    alpha: Annotated[float, Field(ge=0, le=1), Range(0.3, 0.9, step=0.1)] = 0.7
    epochs: Annotated[int, Field(ge=0), Choices(3, 6)] = 3
    learning_rate: Annotated[float, Field(gt=0), Range(3e-5, 3e-3, log=True)] = 3e-4

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
        from knowledge.students import resize, solve_student

        known = decision.student if decision is not None else None
        return resize(layers, known or solve_student(layers, self.compression))

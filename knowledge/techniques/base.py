"""A technique is declared once: its class is schema, search space, defaults, documentation and place in a chain.

Modules with techniques do without `from __future__ import annotations`: pydantic compiles annotations that are text, a
fifth of the time that importing the catalog takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from knowledge.layers import BoolColumn, LayerTable
from knowledge.values import Decision, Refusal


class Level(StrEnum):
    MODEL = "model"  # changes the torch model
    GRAPH = "graph"  # changes the ONNX file


class Phase(IntEnum):
    """Where in a chain a technique stands. Phases never decrease; recovery may follow any lossy MODEL stage."""

    DISTILL = 10
    RESHAPE = 20
    FACTORIZE = 30
    PRUNE = 40
    QUANTIZE = 60
    FUSE = 70


class Family(StrEnum):
    DISTILL = "distill"
    PRUNE = "prune"
    RESHAPE = "reshape"
    FACTORIZE = "factorize"
    QUANTIZE = "quantize"
    RECOVER = "recover"
    FUSE = "fuse"


class Need(Enum):
    CALIBRATION = "calibration"  # representative inputs, no labels
    UNLABELED = "unlabeled"  # training inputs, no labels
    LABELED = "labeled"  # training inputs with labels
    TRAINING = "training"  # gradient steps


@dataclass(frozen=True)
class Range:
    """Values that search may try: low ≤ x ≤ high, on a grid of `step` where given."""

    low: float
    high: float
    step: float | None = None
    log: bool = False


class Choices(tuple[Any, ...]):
    """Values that search may choose among, in order of preference."""

    def __new__(cls, *values: Any) -> "Choices":
        return super().__new__(cls, values)


# parameters that every technique which trains has
Epochs = Annotated[int, Field(ge=0), Choices(3, 6)]
LearningRate = Annotated[float, Field(gt=0), Range(3e-5, 3e-3, log=True)]


class Technique(BaseModel):
    """Base of all techniques. A field annotated with Range or Choices is searched; any other is set by plans only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: ClassVar[str]
    family: ClassVar[Family]
    level: ClassVar[Level]
    phase: ClassVar[Phase | None]  # None: follows any lossy stage
    needs: ClassVar[frozenset[Need]] = frozenset()
    paper: ClassVar[str] = ""  # arXiv id or address
    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "cnn", "rnn", "moe"})
    lossless: ClassVar[bool] = False
    method: ClassVar[str] = ""  # the parameter whose values lose differently at one strength, where there is one
    dial: ClassVar[str] = ""  # the parameter that sets how much is removed, where there is one
    starts_from: ClassVar[str] = ""  # the technique whose result it trains on, and keeps where training gains nothing

    @classmethod
    def space(cls) -> dict[str, Range | Choices]:
        """Searchable fields and what may be tried for each."""
        found: dict[str, Range | Choices] = {}
        for name, info in cls.model_fields.items():
            for extra in info.metadata:
                if isinstance(extra, Range | Choices):
                    found[name] = extra
        return found

    @classmethod
    def space_for(cls, layers: LayerTable) -> dict[str, Range | Choices]:
        """The searchable fields that matter for this model."""
        return cls.space()

    @classmethod
    def together(cls, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters that search chose one by one, with those undone that others leave no room for."""
        return params

    @classmethod
    def summary(cls) -> str:
        """First sentence of the docstring."""
        return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        """Why this technique, with these parameters, cannot help this model. Nothing: it applies."""
        if layers.info.family not in self.architectures:
            yield Refusal(
                technique=self.id,
                rule="technique-architecture",
                observed=f"a {layers.info.family} model",
                required=" or ".join(sorted(self.architectures)),
            )
        elif not self.touches(layers).any():
            yield Refusal(
                technique=self.id,
                rule="technique-no-layer",
                observed="no layer that it can change",
                required=self.requirement(),
            )

    def requirement(self) -> str:
        """What `touches` looks for, in words."""
        return "a layer of a kind it knows"

    def strength(self) -> float:
        """How hard these parameters compress, on the technique's own scale: 0 changes nothing, more loses more."""
        return float(getattr(self, self.dial)) if self.dial else 1.0

    def strength_among(self, blocks: int) -> float:
        """The same for a model of so many blocks (0: unknown): what measurements on several models are compared by."""
        return self.strength()

    def touches(self, layers: LayerTable) -> BoolColumn:
        """Rows that this technique changes."""
        return np.ones(len(layers), dtype=bool)

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        """The same model after this technique, as numbers: exact with the decision, the expectation without."""
        raise TypeError(f"{type(self).__name__} does not declare its effect")

"""What a stage may look at beside the model it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from backends.data import Data
from backends.models import InputSpec, LoadedModel
from backends.store import Store
from backends.tasks import Task
from knowledge.layers import LayerTable
from knowledge.values import Workload


@dataclass(frozen=True)
class Context:
    """Inputs of an executor. `layers` is the profile of the model as it enters the stage."""

    data: Data
    task: Task
    workload: Workload
    layers: LayerTable
    inputs: tuple[InputSpec, ...]
    seed: int = 0
    teacher: LoadedModel | None = None  # the original, uncompressed model
    store: Store | None = None  # where measurements are kept that other parameters share
    key: str = ""  # of the model as it enters the stage, which hashes all that led to it; with a store
    options: Mapping[str, str] = field(default_factory=dict)

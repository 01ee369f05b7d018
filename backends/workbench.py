"""What a stage of a pipeline works with: its seed and context, the quality of what it made, the record it leaves."""

from __future__ import annotations

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends.context import Context
from backends.executors import executor
from backends.memory import PeakMemory
from backends.models import Predict
from backends.onnx.session import open_session, session_predictor
from backends.records import MODEL_FILE, StageRecord
from backends.sources import Source
from backends.store import RECORD, Store
from backends.tasks import Task, reference_outputs
from knowledge.layers import LayerTable
from knowledge.techniques.base import Technique
from knowledge.values import Decision, Quality, Refusal, RunFailed, Workload


class Workbench:
    """Carries out techniques on one source with its data, task and workload."""

    def __init__(self, source: Source, workload: Workload, seed: int, store: Store) -> None:
        self.source, self.workload, self.seed, self.store = source, workload, seed, store
        self.task: Task = source.task

    def execute(self, technique: Technique, *arguments: Any) -> Any:
        """What the technique's executor makes of these arguments, from the seed on."""
        torch.manual_seed(self.seed)
        np.random.seed(self.seed % 2**32)
        return executor(type(technique))(technique, *arguments)

    def context(self, layers: LayerTable, key: str = "") -> Context:
        """All that an executor may read beside the model, whose key this is."""
        return Context(
            data=self.source.data,
            task=self.task,
            workload=self.workload,
            layers=layers,
            inputs=self.source.inputs,
            seed=self.seed,
            teacher=self.source.model,
            store=self.store,
            key=key,
        )

    @cached_property
    def search_reference(self) -> np.ndarray | None:
        """The original model's outputs on the search split, where the task compares with them."""
        if not self.task.needs_reference:
            return None
        return reference_outputs(self.source.predict, self.source.data.search)

    def quality(self, predict: Predict) -> Quality:
        """What the task's metric says of a model on the search split."""
        return self.task.evaluate(predict, self.source.data.search, self.search_reference)

    def file_quality(self, path: Path, technique: str) -> Quality:
        """What the metric says of a file; raises RunFailed naming the technique where the file cannot be run."""
        try:
            predict = session_predictor(open_session(path, self.workload.threads))
        except RunFailed as error:
            raise RunFailed(
                f"{technique}: {error}; the stages before it are kept: leave it out, or report the plan"
            ) from error
        return self.quality(predict)

    def write(
        self,
        folder: Path,
        technique: str,
        params: dict[str, Any],
        decision: Decision,
        layers: LayerTable,
        time_spent: tuple[float, float],  # when the stage began, and the seconds of the technique itself
        memory: PeakMemory,
        quality: Quality,
        warnings: tuple[Refusal, ...] = (),
    ) -> None:
        """Leave the stage's record in its folder."""
        file = folder / MODEL_FILE
        size = file.stat().st_size if file.exists() else 0
        started, seconds = time_spent
        total = time.perf_counter() - started
        record = StageRecord(
            "", technique, params, decision, layers, seconds, total, memory.bytes, quality, size, warnings
        )  # fmt: skip
        (folder / RECORD).write_text(json.dumps(record.to_json()))

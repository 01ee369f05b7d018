"""Stages in order: MODEL stages on the torch model, one export, then GRAPH stages on the file; all results are stored.

    source ─► stage ─► stage ─► export ─► stage ─► model.onnx
      key0     key1     key2     key3      key4

Every key hashes the one before it, so that plans share the work they have in common and a killed run goes on.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends.context import Context
from backends.executors import executor
from backends.memory import PeakMemory
from backends.models import LoadedModel, predictor
from backends.onnx.export import export
from backends.onnx.session import open_session, session_predictor
from backends.onnx.weights import weight_bytes
from backends.profile import profile
from backends.sources import Source, open_source
from backends.store import RECORD, Store, code_version, digest
from backends.structure import load_checkpoint
from backends.structure import save as save_checkpoint
from backends.tasks import Task, reference_outputs
from knowledge.deploy import deployed
from knowledge.layers import LayerTable, table_from_json, table_to_json
from knowledge.techniques.base import Level, Need, Technique
from knowledge.techniques.catalog import CATALOG
from knowledge.values import Decision, Quality, Refusal, Workload

MODEL_FILE = "model.onnx"
EXPORT = "export"


@dataclass(frozen=True)
class StageRecord:
    """What one stage did: its decision, the model after it as numbers, quality on the search split, time and memory."""

    key: str
    technique: str  # a technique id, or "export"
    params: dict[str, Any]
    decision: Decision
    layers: LayerTable = field(repr=False)
    seconds: float  # of the technique itself
    total_seconds: float  # with profile, quality and saving
    peak_memory_bytes: int
    quality: Quality
    file_bytes: int = 0  # of model.onnx, after the export
    warnings: tuple[Refusal, ...] = ()
    reused: bool = False

    @property
    def family(self) -> str:
        return CATALOG[self.technique].family.value if self.technique in CATALOG else EXPORT

    def to_json(self) -> dict[str, Any]:
        return {
            "technique": self.technique,
            "params": self.params,
            "decision": self.decision.model_dump(mode="json"),
            "layers": table_to_json(self.layers),
            "seconds": self.seconds,
            "total_seconds": self.total_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "quality": self.quality.model_dump(mode="json"),
            "file_bytes": self.file_bytes,
            "warnings": [w.model_dump(mode="json") for w in self.warnings],
        }

    @classmethod
    def from_json(cls, key: str, data: dict[str, Any]) -> StageRecord:
        values = dict(data)
        values["decision"] = Decision.model_validate(data["decision"])
        values["layers"] = table_from_json(data["layers"])
        values["quality"] = Quality.model_validate(data["quality"])
        values["warnings"] = tuple(Refusal.model_validate(w) for w in data["warnings"])
        return cls(key=key, reused=True, **values)


class Pipeline:
    """One source with its data, task and workload; runs chains over it that share what they have in common."""

    def __init__(self, source: Source, workload: Workload, seed: int, store: Store) -> None:
        self.source, self.workload, self.seed, self.store = source, workload, seed, store
        self.task: Task = source.task
        self.requested = self.executed = 0
        self._held: tuple[str, LoadedModel] | None = None  # the model of the last finished MODEL stage

    @classmethod
    def open(
        cls,
        model: str,
        *,
        workload: Workload,
        seed: int,
        store: Store,
        task: str | None = None,
        arch: str | None = None,
        metric: str = "",
        files: dict[str, str] | None = None,
    ) -> Pipeline:
        """Load a model and its data; raises InputError on anything wrong with them."""
        source = open_source(model, task=task, arch=arch, metric=metric, files=files or {}, seed=seed)
        return cls(source, workload, seed, store)

    # -- keys --------------------------------------------------------------------------------------

    @cached_property
    def root_key(self) -> str:
        shape = (self.workload.seq_len, self.workload.image_size)
        data = self.source.data.search.fingerprint()
        return digest("root", code_version(), self.source.fingerprint, self.source.identity, shape, data)

    def next_key(self, key: str, technique: Technique) -> str:
        """Key of `technique` applied to the result at `key`: parameters, seed and the data it reads included."""
        reads = []
        if Need.CALIBRATION in technique.needs:
            reads.append(self.source.data.calibration.fingerprint())
        if Need.TRAINING in technique.needs:
            reads.append(self.source.data.train.fingerprint())
        measured_at = self.workload.model_dump() if technique.lossless else None  # kept or not by a measurement
        return digest(key, technique.id, technique.model_dump(mode="json"), self.seed, reads, measured_at)

    # -- running -----------------------------------------------------------------------------------

    def run(self, techniques: Sequence[Technique]) -> Iterator[StageRecord]:
        """Carry out a chain, yielding each stage's record (the export among them) as it is done."""
        key = self.root_key
        exported = False
        for technique in techniques:
            if technique.level is Level.GRAPH and not exported:
                record = self._export(key)
                yield record
                key, exported = record.key, True
            stage = self._graph_stage if technique.level is Level.GRAPH else self._model_stage
            record = self._once(self.next_key(key, technique), partial(stage, before=key, technique=technique))
            yield record
            key = record.key
        if not exported:
            yield self._export(key)

    def file(self, record: StageRecord) -> Path:
        """The ONNX file behind a record of the export or of a GRAPH stage."""
        folder = self.store.entry(record.key)
        if folder is None or not (folder / MODEL_FILE).exists():
            raise KeyError(record.key)
        return folder / MODEL_FILE

    def folder(self, record: StageRecord) -> Path:
        """The stored folder behind a record."""
        folder = self.store.entry(record.key)
        if folder is None:
            raise KeyError(record.key)
        return folder

    @cached_property
    def baseline(self) -> StageRecord:
        """The uncompressed model's ONNX file."""
        return self._export(self.root_key)

    @cached_property
    def original_layers(self) -> LayerTable:
        return self.source.layers(self.workload)

    @cached_property
    def search_reference(self) -> np.ndarray | None:
        """The original model's outputs on the search split, where the task compares with them."""
        if not self.task.needs_reference:
            return None
        return reference_outputs(self.source.predict, self.source.data.search)

    def _once(self, key: str, work: Callable[[str], None]) -> StageRecord:
        self.requested += 1
        known = self.store.record(key)
        if known is None:
            with self.store.lock(key):
                known = self.store.record(key)
                if known is None:
                    self.executed += 1
                    work(key)
                    fresh = self.store.record(key)
                    assert fresh is not None
                    return dataclasses.replace(StageRecord.from_json(key, fresh), reused=False)
        return StageRecord.from_json(key, known)

    def _export(self, key: str) -> StageRecord:
        return self._once(digest(key, EXPORT), partial(self._export_stage, before=key))

    # -- stages ------------------------------------------------------------------------------------

    def _export_stage(self, key: str, before: str) -> None:
        memory = PeakMemory()
        with self.store.writing(key) as folder:
            started = time.perf_counter()
            target = folder / MODEL_FILE
            if self.source.path is not None:
                shutil.copyfile(self.source.path, target)
                layers = self.original_layers
            else:
                model = self._model(before)
                export(model, target, self.workload)
                layers = deployed(profile(model, self.workload))
            seconds = time.perf_counter() - started
            decision = Decision(technique=EXPORT)
            self._write(folder, EXPORT, {}, decision, layers, (started, seconds), memory, self._file_quality(target))

    def _graph_stage(self, key: str, before: str, technique: Technique) -> None:
        source = self.store.entry(before)
        assert source is not None
        layers = table_from_json(json.loads((source / RECORD).read_text())["layers"])
        memory = PeakMemory()
        with self.store.writing(key) as folder:
            started = time.perf_counter()
            target = folder / MODEL_FILE
            decision = self._execute(technique, source / MODEL_FILE, target, self._context(layers))
            seconds = time.perf_counter() - started
            after = technique.effect(layers, decision)
            warnings = _size_mismatch(technique, after.stored_bytes, weight_bytes(target))
            params = technique.model_dump(mode="json")
            quality = self._file_quality(target)
            self._write(folder, technique.id, params, decision, after, (started, seconds), memory, quality, warnings)

    def _model_stage(self, key: str, before: str, technique: Technique) -> None:
        model = self._model(before)
        self._held = None  # the stage may change what it is given
        memory = PeakMemory()
        with self.store.writing(key) as folder:
            started = time.perf_counter()
            layers = profile(model, self.workload)
            private = model.clone() if before == self.root_key else model
            changed, decision = self._execute(technique, private, self._context(layers))
            seconds = time.perf_counter() - started
            after = profile(changed, self.workload)
            warnings = _table_mismatch(technique, technique.effect(layers, decision), after)
            quality = self.task.evaluate(predictor(changed), self.source.data.search, self.search_reference)
            save_checkpoint(changed, folder)
            params = technique.model_dump(mode="json")
            self._write(folder, technique.id, params, decision, after, (started, seconds), memory, quality, warnings)
        self._held = (key, changed)

    def _execute(self, technique: Technique, *arguments: Any) -> Any:
        torch.manual_seed(self.seed)
        np.random.seed(self.seed % 2**32)
        return executor(type(technique))(technique, *arguments)

    def _context(self, layers: LayerTable) -> Context:
        return Context(
            data=self.source.data,
            task=self.task,
            workload=self.workload,
            layers=layers,
            inputs=self.source.inputs,
            seed=self.seed,
            teacher=self.source.model,
        )

    def _model(self, key: str) -> LoadedModel:
        if key == self.root_key:
            assert self.source.model is not None
            return self.source.model
        if self._held is None or self._held[0] != key:
            folder = self.store.entry(key)
            assert folder is not None
            self._held = (key, load_checkpoint(folder))
        return self._held[1]

    def _file_quality(self, path: Path) -> Quality:
        predict = session_predictor(open_session(path, self.workload.threads))
        return self.task.evaluate(predict, self.source.data.search, self.search_reference)

    def _write(
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
        file = folder / MODEL_FILE
        size = file.stat().st_size if file.exists() else 0
        started, seconds = time_spent
        total = time.perf_counter() - started
        record = StageRecord(
            "", technique, params, decision, layers, seconds, total, memory.bytes, quality, size, warnings
        )  # fmt: skip
        (folder / RECORD).write_text(json.dumps(record.to_json()))


def _table_mismatch(technique: Technique, expected: LayerTable, real: LayerTable) -> tuple[Refusal, ...]:
    """A warning where a technique did something else than its decision says."""
    if (expected.parameters, expected.macs) == (real.parameters, real.macs):
        return ()
    observed = f"{real.parameters} parameters and {real.macs} MACs"
    return (_mismatch(technique, observed, f"{expected.parameters} parameters and {expected.macs} MACs"),)


def _size_mismatch(technique: Technique, expected_bytes: int, real_bytes: int) -> tuple[Refusal, ...]:
    if abs(expected_bytes - real_bytes) <= 0.01 * real_bytes:
        return ()
    return (_mismatch(technique, f"{real_bytes} bytes of weights in the file", f"{expected_bytes} bytes"),)


def _mismatch(technique: Technique, observed: str, expected: str) -> Refusal:
    return Refusal(
        technique=technique.id,
        rule="effect-differs",
        observed=observed,
        required=f"{expected}, by the stage's own decision",
        remedy="the stage did not do what it reports: please report this with the plan",
    )

"""Stages in order: MODEL stages on the torch model, one export, then GRAPH stages on the file; all results are stored.

    source ─► stage ─► stage ─► export ─► stage ─► model.onnx
      key0     key1     key2     key3      key4

Every key hashes the one before it, so that plans share the work they have in common and a killed run goes on.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

from backends.executors import require_executor
from backends.memory import PeakMemory
from backends.models import LoadedModel, predictor
from backends.onnx.export import export
from backends.onnx.on_grids import store_grids
from backends.onnx.refill import refill
from backends.onnx.source import whole
from backends.onnx.weights import weight_bytes
from backends.profile import profile
from backends.records import EXPORT, MODEL_FILE, StageRecord, size_mismatch, table_mismatch
from backends.sources import Source, open_source
from backends.store import RECORD, Store, code_version, digest
from backends.structure import load_checkpoint, same_structure
from backends.structure import save as save_checkpoint
from backends.workbench import Workbench
from knowledge.deploy import deployed
from knowledge.files import write_bytes
from knowledge.layers import LayerTable, table_from_json
from knowledge.techniques.base import Level, Need, Technique
from knowledge.values import Decision, InputError, Refusal, Workload


def refuse(technique: Technique, layers: LayerTable) -> None:
    """Raise InputError with the first reason why a technique does not apply to a model."""
    refusal = next(technique.refusals(layers), None)
    if refusal is not None:
        problem = f"does not apply: {refusal.observed}; needs {refusal.required}"
        raise InputError("stages", technique.id, problem, refusal.remedy or "leave this stage out")


class Pipeline:
    """One source with its data, task and workload; runs chains over it that share what they have in common."""

    def __init__(self, source: Source, workload: Workload, seed: int, store: Store) -> None:
        self.source, self.workload, self.seed, self.store = source, workload, seed, store
        self.bench = Workbench(source, workload, seed, store)
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
        allow_code: bool = False,
    ) -> Pipeline:
        """Load a model and its data; raises InputError on anything wrong with them."""
        source = open_source(
            model, task=task, arch=arch, metric=metric, files=files or {}, seed=seed, allow_code=allow_code
        )
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
        """Carry out a chain, yielding each stage's record (the export among them) as it is done.

        Raises InputError at a stage that cannot change the model as it then is.
        """
        self.check(techniques)
        key, layers = self.root_key, self.original_layers
        exported = False
        for technique in techniques:
            if technique.level is Level.GRAPH and not exported:
                record = self._export(key)
                yield record
                key, layers, exported = record.key, record.layers, True
            refuse(technique, layers)
            stage = self._graph_stage if technique.level is Level.GRAPH else self._model_stage
            record = self._once(self.next_key(key, technique), partial(stage, before=key, technique=technique))
            yield record
            key, layers = record.key, record.layers
        if not exported:
            yield self._export(key)

    def check(self, techniques: Sequence[Technique]) -> None:
        """Raise InputError where a chain cannot start on this source; later stages are checked as they come."""
        for technique in techniques:
            require_executor(type(technique))
            if technique.level is Level.MODEL and self.source.model is None:
                problem = f"{self.source.name} is an ONNX file: only techniques that change files apply"
                raise InputError("stages", technique.id, problem, "name the torch model, or leave this stage out")
        if techniques:
            refuse(techniques[0], self.original_layers)

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

    def model(self, records: Sequence[StageRecord]) -> LoadedModel | None:
        """The torch model that a finished chain exported; the source's own where no stage changed its structure.

        None for an ONNX file. The result is the pipeline's: leave it as it is.
        """
        exported = next(i for i, record in enumerate(records) if record.technique == EXPORT)
        decisions = [record.decision for record in records[:exported]]
        return self.source.model if same_structure(decisions) else self._model(records[exported - 1].key)

    @cached_property
    def baseline(self) -> StageRecord:
        """The uncompressed model's ONNX file."""
        return self._export(self.root_key)

    @cached_property
    def original_layers(self) -> LayerTable:
        return self.source.layers(self.workload)

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
            warnings: tuple[Refusal, ...] = ()
            if self.source.path is not None:
                write_bytes(target, whole(self.source.path))
                layers = self.original_layers
            else:
                model = self._model(before)
                warnings = self._write_file(model, target, before)
                layers = deployed(profile(model, self.workload))
                if model.grids:
                    layers, in_float = store_grids(target, model.grids, layers)
                    warnings += in_float
            seconds = time.perf_counter() - started
            decision = Decision(technique=EXPORT)
            quality = self.bench.file_quality(target, EXPORT)
            self.bench.write(folder, EXPORT, {}, decision, layers, (started, seconds), memory, quality, warnings)

    def _write_file(self, model: LoadedModel, target: Path, key: str) -> tuple[Refusal, ...]:
        """The export of a model, from that of the source where only numbers differ; its warnings."""
        original = self.source.model
        assert original is not None
        if key != self.root_key and same_structure(model.structure):
            source = self.baseline
            if refill(self.file(source), original.module, model, target, self.workload):
                return source.warnings
        return export(model, target, self.workload)

    def _graph_stage(self, key: str, before: str, technique: Technique) -> None:
        source = self.store.entry(before)
        assert source is not None
        layers = table_from_json(json.loads((source / RECORD).read_text())["layers"])
        memory = PeakMemory()
        with self.store.writing(key) as folder:
            started = time.perf_counter()
            target = folder / MODEL_FILE
            decision = self.bench.execute(technique, source / MODEL_FILE, target, self.bench.context(layers))
            seconds = time.perf_counter() - started
            quality = self.bench.file_quality(target, technique.id)
            after = technique.effect(layers, decision)
            warnings = size_mismatch(technique, after.stored_bytes, weight_bytes(target))
            params = technique.model_dump(mode="json")
            self.bench.write(
                folder, technique.id, params, decision, after, (started, seconds), memory, quality, warnings
            )

    def _model_stage(self, key: str, before: str, technique: Technique) -> None:
        model = self._model(before)
        self._held = None  # the stage may change what it is given
        memory = PeakMemory()
        with self.store.writing(key) as folder:
            started = time.perf_counter()
            layers = profile(model, self.workload)
            private = model.clone() if before == self.root_key else model
            changed, decision = self.bench.execute(technique, private, self.bench.context(layers, before))
            seconds = time.perf_counter() - started
            after = profile(changed, self.workload)
            warnings = table_mismatch(technique, technique.effect(layers, decision), after)
            quality = self.bench.quality(predictor(changed))
            save_checkpoint(changed, folder)
            params = technique.model_dump(mode="json")
            self.bench.write(
                folder, technique.id, params, decision, after, (started, seconds), memory, quality, warnings
            )
        self._held = (key, changed)

    def _model(self, key: str) -> LoadedModel:
        if key == self.root_key:
            assert self.source.model is not None
            return self.source.model
        if self._held is None or self._held[0] != key:
            folder = self.store.entry(key)
            assert folder is not None
            self._held = (key, load_checkpoint(folder, allow_code=True))  # of a source that was loaded
        return self._held[1]

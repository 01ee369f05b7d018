"""One trial: run a chain on the search split, stop early where the budget is already lost, measure the file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna

from advisor.studies.space import Step, chain_id, suggest
from knowledge.files import disk_full
from knowledge.techniques.base import Need
from knowledge.techniques.catalog import build
from knowledge.values import Budget, InputError, Latency, Ratio, RunFailed, Stage

if TYPE_CHECKING:
    from backends.records import StageRecord
    from backends.runner import Pipeline

# goal -> (attribute, direction) of each objective
OBJECTIVES: dict[str, tuple[tuple[str, str], ...]] = {
    "size": (("size_bytes", "minimize"),),
    "latency": (("speedup", "maximize"),),
    "throughput": (("speedup", "maximize"),),
    "memory": (("peak_memory_bytes", "minimize"),),
    "quality": (("quality_drop", "minimize"), ("size_bytes", "minimize")),
    "overall": (("size_bytes", "minimize"), ("speedup", "maximize")),
}
TIMING_ROUNDS = 24  # of a trial; the final file is measured longer


class TrialFailed(Exception):
    """A chain could not be carried out with these parameters; others may work."""


class Objective:
    """Callable for Optuna. Each trial leaves what it measured in its user attributes."""

    def __init__(self, pipeline: Pipeline, chains: Sequence[Sequence[Step]], budget: Budget, goal: str) -> None:
        self.pipeline, self.budget, self.goal = pipeline, budget, goal
        self.chains = {chain_id(chain): tuple(chain) for chain in chains}
        self.layers = pipeline.original_layers

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...] | float:
        started = time.perf_counter()
        name = trial.suggest_categorical("chain", list(self.chains))
        stages = suggest(trial, self.chains[name], self.layers)
        trial.set_user_attr("stages", [s.model_dump(mode="json") for s in stages])
        requested, executed = self.pipeline.requested, self.pipeline.executed
        try:
            measured = self._known(trial, stages) or self._measure(stages)
        except (RunFailed, InputError) as error:  # diverged, parts from torch in export, cannot be built
            if disk_full(error):
                raise
            trial.set_user_attr("failed", str(error))
            raise TrialFailed(str(error)) from error
        trial.set_user_attr("stages_requested", self.pipeline.requested - requested)
        trial.set_user_attr("stages_executed", self.pipeline.executed - executed)
        for attribute, value in measured.items():
            trial.set_user_attr(attribute, value)
        trial.set_user_attr("seconds", time.perf_counter() - started)
        for limit, excess in self.excesses(measured).items():
            trial.set_constraint(limit, excess)
        if measured.get("stopped_at"):
            raise optuna.TrialPruned(f"worse than the budget after {measured['stopped_at']}")
        values = tuple(float(measured[attribute]) for attribute, _ in OBJECTIVES[self.goal])
        return values if len(values) > 1 else values[0]

    def excesses(self, measured: dict[str, Any]) -> dict[str, float]:
        """By how much each limit is missed, as a share of it; zero or less is met."""
        budget, found = self.budget, {}
        allowed = budget.max_drop.amount
        found["quality"] = (measured["quality_drop"] - allowed) / max(allowed, 1.0)
        if budget.max_size_bytes and "size_bytes" in measured:
            found["size"] = measured["size_bytes"] / budget.max_size_bytes - 1
        if budget.min_speedup and "speedup" in measured:
            found["speedup"] = 1 - measured["speedup"] / budget.min_speedup
        if budget.max_latency_ms and "latency_ms" in measured:
            found["latency"] = measured["latency_ms"] / budget.max_latency_ms - 1
        if budget.max_memory_bytes and "peak_memory_bytes" in measured:
            found["memory"] = measured["peak_memory_bytes"] / budget.max_memory_bytes - 1
        return found

    def _known(self, trial: optuna.Trial, stages: tuple[Stage, ...]) -> dict[str, Any] | None:
        """What an earlier trial measured for the very same stages."""
        wanted = [s.model_dump(mode="json") for s in stages]
        for other in trial.study.get_trials(deepcopy=False):
            attributes = other.user_attrs
            if other.number != trial.number and other.state.is_finished() and attributes.get("stages") == wanted:
                own = ("chain", "stages", "seconds", "stages_requested", "stages_executed")
                measured = {k: v for k, v in attributes.items() if k not in own}
                if "quality_drop" in measured:
                    return {**measured, "work_seconds": 0.0, "same_as": other.number}
        return None

    def _measure(self, stages: tuple[Stage, ...]) -> dict[str, Any]:
        pipeline = self.pipeline
        baseline = pipeline.baseline
        techniques = [build(stage) for stage in stages]
        last_training = max((i for i, t in enumerate(techniques) if Need.TRAINING in t.needs), default=-1)
        work_seconds, record, position = 0.0, baseline, 0
        for record in pipeline.run(techniques):
            if not record.reused:
                work_seconds += record.total_seconds
            drop = record.quality.drop_from(baseline.quality, self.budget.max_drop.unit)
            position += record.technique != "export"
            is_last = position == len(techniques) and record.file_bytes > 0
            if drop > self.budget.max_drop.amount and position > last_training and not is_last:
                return {"quality_drop": drop, "stopped_at": record.technique, "work_seconds": work_seconds}
        started = time.perf_counter()
        measured = self._file(record, baseline)
        return {**measured, "work_seconds": work_seconds + time.perf_counter() - started}

    def _file(self, record: StageRecord, baseline: StageRecord) -> dict[str, Any]:
        """Size, speed and memory of a trial's file against the uncompressed one."""
        from backends.onnx.memory import peak_memory_bytes
        from backends.onnx.workload import workload_feed

        before, after, speedup = self._speed(record, baseline)
        measured: dict[str, Any] = {
            "size_bytes": record.file_bytes,
            "compression": baseline.file_bytes / record.file_bytes,
            "speedup": speedup.value,
            "speedup_interval": [speedup.low, speedup.high],
            "latency_ms": after.p50,
            "baseline_latency_ms": before.p50,
            "quality_drop": record.quality.drop_from(baseline.quality, self.budget.max_drop.unit),
            "quality": record.quality.value,
        }
        if self.goal == "memory" or self.budget.max_memory_bytes:
            file, workload = self.pipeline.file(record), self.pipeline.workload
            feed = workload_feed(file, self.pipeline.source.data.search, workload)
            measured["peak_memory_bytes"] = peak_memory_bytes(file, feed, workload.threads)
        return measured

    def _speed(self, record: StageRecord, baseline: StageRecord) -> tuple[Latency, Latency, Ratio]:
        from backends.onnx.timing import compare_files
        from backends.onnx.workload import workload_feed

        workload = self.pipeline.workload
        first, second = self.pipeline.file(baseline), self.pipeline.file(record)
        feed = workload_feed(first, self.pipeline.source.data.search, workload)
        with self.pipeline.store.lock("timing"):  # two searching processes do not time at once
            return compare_files(first, second, feed, workload.threads, TIMING_ROUNDS)


def stages_of(trial: optuna.trial.FrozenTrial) -> tuple[Stage, ...]:
    """The chain that a trial ran."""
    return tuple(Stage.model_validate(stage) for stage in json.loads(json.dumps(trial.user_attrs["stages"])))

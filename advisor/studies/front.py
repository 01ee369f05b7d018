"""What a study found: which trials are feasible, which no other beats, and which one is best for the goal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from advisor.studies.space import chain_id
from knowledge.values import Stage

# shares by which gains differ that are the same: files timed twice differ by 4 %, sizes are exact
TOLERANCE = {"size": 0.01, "latency": 0.04, "throughput": 0.04, "memory": 0.04, "overall": 0.04}


def feasible(trial: FrozenTrial) -> bool:
    """Finished, with every limit met."""
    return trial.state is TrialState.COMPLETE and all(value <= 0 for value in trial.constraints.values())


def pareto_front(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Feasible trials that no other beats in size, speed and quality at once."""
    candidates = [t for t in trials if feasible(t)]
    if not candidates:
        return []
    a = [t.user_attrs for t in candidates]
    costs = np.array([[x["size_bytes"], -x["speedup"], x["quality_drop"]] for x in a])  # [trials, 3], smaller is better
    no_worse = (costs[:, None] <= costs[None]).all(-1)  # [i, j]: i is nowhere worse than j
    better = (costs[:, None] < costs[None]).any(-1)
    dominated = np.any(no_worse & better, axis=0, keepdims=True)[0]
    unique: dict[tuple[float, ...], FrozenTrial] = {}
    for trial, cost, lost in zip(candidates, costs, dominated, strict=True):
        if not lost:
            unique.setdefault(tuple(cost), trial)
    return list(unique.values())


def gain(attributes: dict[str, Any], goal: str) -> float:
    """What the goal asks for; larger is better. `overall`: efficiency relative to the baseline, at equal quality."""
    if goal == "size":
        return float(1 / attributes["size_bytes"])
    if goal in ("latency", "throughput"):
        return float(attributes["speedup"])
    if goal == "memory":
        return float(1 / attributes["peak_memory_bytes"])
    return float(attributes["speedup"] / attributes["size_bytes"])


def best_trial(trials: Iterable[FrozenTrial], goal: str) -> FrozenTrial | None:
    """The feasible trial that serves the goal best.

    Among gains too close to be told apart the least loss decides, then the gain, then which came first: a budget is
    not spent on noise.
    """
    candidates = [t for t in trials if feasible(t)]
    most = max((gain(t.user_attrs, goal) for t in candidates), default=0.0)
    within = 1.0 if goal == "quality" else TOLERANCE[goal]
    near = [t for t in candidates if gain(t.user_attrs, goal) >= (1 - within) * most]
    return min(near, key=lambda t: (t.user_attrs["quality_drop"], -gain(t.user_attrs, goal), t.number), default=None)


def nearest_miss(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Where nothing fits: the trial that misses its limits by the smallest sum of shares.

    A trial that was stopped early knows only the quality that it lost; it counts where no trial was measured.
    """
    tried = [t for t in trials if t.constraints]
    measured = [t for t in tried if "size_bytes" in t.user_attrs]
    return min(measured or tried, key=lambda t: sum(max(0.0, v) for v in t.constraints.values()), default=None)


def trial_rows(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """The trials as rows of `pareto.json`."""
    rows = []
    for trial in trials:
        attributes = trial.user_attrs
        stages = [Stage.model_validate(s) for s in attributes.get("stages", [])]
        row = {
            "number": trial.number,
            "chain": chain_id(stages),
            "stages": attributes.get("stages", []),
            "state": trial.state.name.lower(),
            "feasible": feasible(trial),
            "excess": dict(trial.constraints),
        }
        measured = (
            "size_bytes",
            "compression",
            "speedup",
            "latency_ms",
            "quality",
            "quality_drop",
            "peak_memory_bytes",
        )
        row |= {
            name: attributes.get(name)
            for name in (*measured, "stopped_at", "seconds", "work_seconds", "same_as", "failed")
        }
        rows.append(row)
    return rows

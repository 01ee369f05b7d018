"""Finished runs side by side, and whether their figures may be compared at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advisor.report import read_run
from advisor.report.measured import quality_change, quality_drop
from advisor.texts import chain_text
from knowledge.values import InputError, Value

COMPARE_SCHEMA = "advisor.compare/1"


class ComparedRun(Value):
    """One run's measured figures; ratios are against its own uncompressed file."""

    run: str
    model: str
    target: str
    chain: str
    size_bytes: int
    compression: float
    speedup: float
    speedup_low: float
    speedup_high: float
    latency_ms_p50: float
    peak_memory_bytes: int
    metric: str
    quality: float
    quality_drop: float
    quality_change: str  # of the score itself: a perplexity's fall is a gain
    quality_unit: str
    efficiency: float
    within_budget: bool


class Comparison(Value):
    runs: tuple[ComparedRun, ...]
    cautions: tuple[str, ...]  # why some figures should not be compared


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Measured figures of run folders (or of studies' best runs); raises InputError on a folder without them."""
    if len(folders) < 2:
        raise InputError("run", folders[0] if folders else "", "is the only one", "name two or more runs")
    runs = [read_run(folder) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if not run.get("verification"):
            raise InputError("run", folder, "was never verified", "run `advisor verify` on it first")
    rows = [_row(folder, run) for folder, run in zip(folders, runs, strict=True)]
    return Comparison(runs=tuple(rows), cautions=tuple(cautions(runs)))


def _row(folder: Path, run: dict[str, Any]) -> ComparedRun:
    plan, verification = run["plan"], run["verification"]
    after = verification["compressed"]
    return ComparedRun(
        run=str(folder),
        model=plan["model"],
        target=plan["target"],
        chain=chain_text(plan["stages"]),
        size_bytes=after["size_bytes"],
        compression=verification["compression"],
        speedup=verification["speedup"]["value"],
        speedup_low=verification["speedup"]["low"],
        speedup_high=verification["speedup"]["high"],
        latency_ms_p50=after["latency_ms"]["p50"],
        peak_memory_bytes=after["peak_memory_bytes"],
        metric=after["quality"]["metric"],
        quality=after["quality"]["value"],
        quality_drop=quality_drop(verification),
        quality_change=quality_change(verification["baseline"]["quality"], after["quality"]),
        quality_unit=after["quality"]["unit"],
        efficiency=verification["efficiency"],
        within_budget=verification["verdict"]["within_budget"],
    )


def cautions(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What differs between runs and makes a column incomparable."""
    looked_at: tuple[tuple[str, str, list[Any]], ...] = (
        ("models", "sizes and quality are of different models", [r["plan"]["model"] for r in runs]),
        ("workloads", "latencies are of different requests", [r["plan"]["workload"] for r in runs]),
        ("metrics", "qualities mean different things", [_after(r)["quality"]["metric"] for r in runs]),
        ("data", "quality was measured on different data", [r["plan"].get("data", {}).get("eval", "") for r in runs]),
        ("seeds", "quality was measured on different samples", [r["plan"]["seed"] for r in runs]),
        ("environments", "latencies were taken in different places", [r["verification"]["environment"] for r in runs]),
    )
    return [f"different {name}: {text}" for name, text, values in looked_at if any(v != values[0] for v in values)]


def _after(run: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = run["verification"]["compressed"]
    return found


def to_json(comparison: Comparison) -> dict[str, Any]:
    return {"schema": COMPARE_SCHEMA, **comparison.model_dump(mode="json")}

"""The stages of a run, their training curves, and estimates beside measurements, as texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advisor.report.charts import Chart, Span, span, training_curve
from advisor.report.measured import quality_change, quality_drop
from advisor.texts import params_text, warning_text
from advisor.units import (
    bytes_text,
    count_text,
    interval_text,
    ms_text,
    quality_text,
    ratio_text,
    seconds_text,
)

Json = Mapping[str, Any]


@dataclass(frozen=True)
class StageRow:
    number: str
    technique: str
    family: str
    params: str
    size: str
    share: float  # of the uncompressed bytes, 0 to 100
    parameters: str
    quality: str
    change: str
    seconds: str
    memory: str
    reused: bool
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """An estimated figure beside the measured one."""

    figure: str
    estimate: str
    basis: str
    measured: str
    inside: bool | None
    span: Span


def stage_rows(run: Json) -> tuple[StageRow, ...]:
    """The uncompressed model, then each stage and the export, in the order in which they ran."""
    baseline = run.get("baseline")
    stages = [*([{**baseline, "technique": "uncompressed", "params": {}}] if baseline else []), *run["stages"]]
    number, rows = 0, []
    for stage in stages:
        counted = stage["technique"] not in ("uncompressed", "export")
        number += counted
        rows.append(_stage_row(stage, stages[0], str(number) if counted else ""))
    return tuple(rows)


def _stage_row(stage: Json, first: Json, number: str) -> StageRow:
    size, uncompressed = _size(stage), _size(first)
    quality = stage["quality"]
    return StageRow(
        number=number,
        technique=stage["technique"],
        family=stage["family"] if number else "",
        params=params_text(stage["params"]),
        size=bytes_text(size),
        share=min(100.0, 100 * size / max(uncompressed, 1)),
        parameters=count_text(stage["parameters"]),
        quality=quality_text(quality) if quality else "",
        change=_change(first["quality"], quality) if stage is not first else "",
        seconds=seconds_text(stage["seconds"]),
        memory=bytes_text(stage["peak_memory_bytes"]),
        reused=stage["reused"],
        skipped=tuple(warning_text(s) for s in stage["decision"].get("skipped", ())),
    )


def _size(stage: Json) -> float:
    """Bytes of the file where there is one, of the stored numbers before the export."""
    return float(stage.get("file_bytes") or stage["stored_bytes"])


def _change(before: Json | None, after: Json | None) -> str:
    if not before or not after:
        return ""
    return quality_change(before, after)


def curves(run: Json) -> tuple[Chart, ...]:
    """Training curves of the stages that trained."""
    found = [(s["technique"], s["decision"].get("curve", ())) for s in run["stages"]]
    return tuple(training_curve(technique, curve) for technique, curve in found if len(curve) > 1)


def compared(run: Json) -> tuple[Compared, ...]:
    """Each estimate with what was measured for it."""
    estimate, verification = run.get("estimate"), run.get("verification")
    if not estimate or not verification:
        return ()
    after = verification["compressed"]
    rows = (
        ("file size", "size_bytes", after["size_bytes"], bytes_text),
        ("times smaller", "compression", verification["compression"], ratio_text),
        ("times faster", "speedup", verification["speedup"]["value"], ratio_text),
        ("latency", "latency_ms", after["latency_ms"]["p50"], ms_text),
        ("quality lost", "quality_drop", quality_drop(verification), None),
    )
    return tuple(
        Compared(
            figure=figure,
            estimate=interval_text(estimate[name], show),
            basis=estimate[name]["basis"],
            measured=show(value) if show else f"{value:.2f} {after['quality']['unit']}",
            inside=estimate[name]["low"] <= value <= estimate[name]["high"],
            span=span(estimate[name]["low"], estimate[name]["mid"], estimate[name]["high"], value),
        )
        for figure, name, value, show in rows
        if name in estimate
    )

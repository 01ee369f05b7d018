"""What a report shows, taken from `run.json`, `pareto.json` and the recommendation: plain texts, no markup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from advisor.report.advice import advice, asked
from advisor.report.charts import Chart
from advisor.report.layers import layer_text
from advisor.report.measured import MeasuredRow, Tile, measured, parity, tiles, verdict_of
from advisor.report.stages import Compared, StageRow, compared, curves, stage_rows
from advisor.report.study import Study, nearest_text, study_of
from advisor.texts import chain_text, finished_trials, flat_text, warning_text

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    title: str
    subtitle: str
    state: str  # good, bad or none
    verdict: str
    misses: tuple[str, ...] = ()
    tiles: tuple[Tile, ...] = ()
    asked: tuple[tuple[str, str], ...] = ()
    assumed: tuple[str, ...] = ()
    chains: tuple[dict[str, Any], ...] = ()
    reasons: tuple[dict[str, Any], ...] = ()
    refused: tuple[dict[str, Any], ...] = ()
    stages: tuple[StageRow, ...] = ()
    curves: tuple[Chart, ...] = ()
    compared: tuple[Compared, ...] = ()
    measured: tuple[MeasuredRow, ...] = ()
    parity: tuple[tuple[str, str], ...] = ()
    explanations: tuple[dict[str, Any], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    layers: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    study: Study | None = None


def run_report(run: Json) -> Report:
    """The report of one run folder's `run.json`."""
    plan, verification = run["plan"], run["verification"]
    chain = chain_text(plan["stages"])
    state, verdict, misses = verdict_of(verification)
    return Report(
        title=plan["model"],
        subtitle=f"{chain} for {plan['target']}",
        state=state,
        verdict=verdict,
        misses=misses,
        tiles=tiles(verification, plan) if verification else (),
        asked=asked(plan),
        **advice(run.get("recommendation"), plan),
        stages=stage_rows(run),
        curves=curves(run),
        compared=compared(run),
        measured=measured(verification, plan["budget"]["max_drop"]["unit"]) if verification else (),
        parity=parity(verification) if verification else (),
        explanations=tuple(verification["explanations"]) if verification else (),
        environment=tuple((k, flat_text(v)) for k, v in verification["environment"].items()) if verification else (),
        layers=tuple(layer_text(row) for row in run.get("layers") or ()),
        warnings=tuple(warning_text(w) for w in run["warnings"]),
    )


def study_report(pareto: Json, recommendation: Json | None, run: Json | None) -> Report:
    """The report of a study: the trials, and the best plan's run where something fitted."""
    study = study_of(pareto, run["plan"]["budget"]["max_drop"] if run else None)
    if run is not None:
        known = run if run.get("recommendation") or not recommendation else {**run, "recommendation": recommendation}
        return replace(run_report(known), study=study)
    request = recommendation["request"] if recommendation else {}
    return Report(
        title=str(request.get("model") or pareto.get("study", "study")),
        subtitle=f"{len(finished_trials(pareto))} trials",
        state="bad",
        verdict="No trial met the budget.",
        misses=nearest_text(pareto),
        asked=tuple((k, flat_text(v)) for k, v in request.items() if v not in (None, "", [], {}) and k != "assumed"),
        **advice(recommendation, {"stages": ()}),
        study=study,
    )

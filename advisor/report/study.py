"""What a search tried, as texts and charts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advisor.report.charts import Chart, trial_charts
from advisor.texts import finished_trials, params_text, trial_chain
from advisor.units import bytes_text, ratio_text, seconds_text

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """What was searched."""

    facts: tuple[tuple[str, str], ...]
    charts: tuple[Chart, ...]
    trials: tuple[dict[str, Any], ...]
    best: int | None
    nearest: int | None


def study_of(pareto: Json, max_drop: Json | None) -> Study:
    """The trials of `pareto.json`, with the quality budget drawn where it is known."""
    drop = max_drop or {}
    return Study(
        facts=study_facts(pareto),
        charts=trial_charts(pareto, drop.get("amount"), drop.get("unit", "")),
        trials=tuple(trial_row(t, pareto) for t in finished_trials(pareto)),
        best=pareto["best"],
        nearest=pareto.get("nearest"),
    )


def nearest_text(pareto: Json) -> tuple[str, ...]:
    """What the trial nearest to the budget missed, and by how much."""
    number = pareto.get("nearest")
    trial = next((t for t in pareto["trials"] if t["number"] == number), None)
    if trial is None:
        return ()
    missed = [f"{name} by {100 * over:.0f} %" for name, over in trial.get("excess", {}).items() if over > 0]
    return (f"nearest: trial {number} ({trial_chain(trial)}) misses {' and '.join(missed)} of the limit",)


def study_facts(pareto: Json) -> tuple[tuple[str, str], ...]:
    trials = finished_trials(pareto)
    requested, executed = pareto["stages_requested"], pareto["stages_executed"]
    return (
        ("trials", f"{len(trials)}, of which {sum(t['feasible'] for t in trials)} within the budget"),
        ("stopped early", str(sum(bool(t.get("stopped_at")) for t in trials))),
        ("goal", pareto["goal"]),
        (
            "stages",
            f"{requested} asked for, {executed} carried out ({ratio_text(requested / max(executed, 1))} shared)",
        ),
        *((("time", seconds_text(pareto["seconds"])),) if "seconds" in pareto else ()),
    )


def trial_row(trial: Json, pareto: Json) -> dict[str, Any]:
    known = trial.get("size_bytes") is not None
    state = "best" if trial["number"] == pareto["best"] else "front" if trial["number"] in pareto["front"] else ""
    if trial.get("stopped_at"):
        state = f"stopped after {trial['stopped_at']}"
    elif trial["state"] == "fail":
        state = "failed"
    elif not trial["feasible"]:
        state = "misses the budget"
    stages = trial.get("stages") or ()
    drop = trial.get("quality_drop")
    return {
        "number": trial["number"],
        "chain": trial_chain(trial),
        "params": "; ".join(f"{s['technique']}: {params_text(s['params'])}" for s in stages if s["params"]),
        "size": bytes_text(trial["size_bytes"]) if known else "",
        "speedup": ratio_text(trial["speedup"]) if trial.get("speedup") is not None else "",
        "drop": f"{drop:.2f}" if drop is not None else "",
        "seconds": seconds_text(trial["seconds"]) if trial.get("seconds") is not None else "",
        "state": state,
    }

"""What a search tried, as texts and charts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from advisor.report.charts import Chart, trial_charts
from advisor.texts import finished_trials, params_text, trial_chain
from advisor.units import bytes_text, loss_text, ms_text, ratio_text, seconds_text

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
    budget = (pareto.get("question") or {}).get("budget", {})
    missed = [_miss_text(name, over, trial, budget) for name, over in trial.get("excess", {}).items() if over > 0]
    unit = budget.get("max_drop", {}).get("unit", "")
    needed = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in needed_options(trial, unit).items())
    told = f"nearest: trial {number} ({trial_chain(trial)}) misses {' and '.join(missed)}"
    return (told, f"it would be within {needed}") if needed else (told,)


def needed_options(trial: Json, unit: str) -> dict[str, str]:
    """Options under which a trial would have been within the budget."""
    missed = {name for name, over in trial.get("excess", {}).items() if over > 0}
    found: dict[str, str] = {}
    if "quality" in missed and trial.get("quality_drop") is not None:
        found["max_drop"] = f"{math.ceil(10 * trial['quality_drop']) / 10:g}{unit}"
    if "size" in missed and trial.get("size_bytes"):
        found["max_size"] = str(math.ceil(trial["size_bytes"]))
    if "latency" in missed and trial.get("latency_ms"):
        found["max_latency"] = f"{1.1 * trial['latency_ms']:.3g}ms"
    if "memory" in missed and trial.get("peak_memory_bytes"):
        found["max_memory"] = str(math.ceil(1.05 * trial["peak_memory_bytes"]))
    if "speedup" in missed and trial.get("speedup"):
        found["min_speedup"] = f"{math.floor(10 * trial['speedup']) / 10 or 0.1:g}"
    return found


# limit -> (what a trial reached, the limit in a budget, how both are written)
_REACHED: dict[str, tuple[str, str, Callable[[float], str]]] = {
    "size": ("size_bytes", "max_size_bytes", bytes_text),
    "latency": ("latency_ms", "max_latency_ms", ms_text),
    "memory": ("peak_memory_bytes", "max_memory_bytes", bytes_text),
    "speedup": ("speedup", "min_speedup", ratio_text),
}


def _miss_text(limit: str, over: float, trial: Json, budget: Json) -> str:
    """`size by 55 % of the limit (31.0 KB where 20.0 KB is asked for)`."""
    told = f"{limit} by {100 * over:.0f} % of the limit"
    drop = budget.get("max_drop")
    if limit == "quality" and drop and trial.get("quality_drop") is not None:
        return f"{told} ({loss_text(trial['quality_drop'], drop['unit'])} where {drop['amount']:g} may be)"
    reached, asked, show = _REACHED.get(limit, ("", "", ratio_text))
    if trial.get(reached) is None or budget.get(asked) is None:
        return told
    return f"{told} ({show(trial[reached])} where {show(budget[asked])} is asked for)"


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

"""What was asked, recommended and refused, as texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.texts import chain_text, workload_text
from advisor.units import bytes_text, interval_text, ms_text, ratio_text

Json = Mapping[str, Any]


def asked(plan: Json) -> tuple[tuple[str, str], ...]:
    """What the user wanted, in words."""
    budget, work = plan["budget"], plan["workload"]
    drop = budget["max_drop"]
    rows = [
        ("model", plan["model"]),
        ("task", plan["task"]),
        ("target", plan["target"]),
        ("goal", plan["goal"]),
        ("quality to spend", f"{drop['amount']:g} {drop['unit']}"),
        ("largest file", bytes_text(budget["max_size_bytes"]) if budget.get("max_size_bytes") else ""),
        ("longest latency", ms_text(budget["max_latency_ms"]) if budget.get("max_latency_ms") else ""),
        ("most memory", bytes_text(budget["max_memory_bytes"]) if budget.get("max_memory_bytes") else ""),
        ("least speed-up", ratio_text(budget["min_speedup"]) if budget.get("min_speedup") else ""),
        ("workload", workload_text(work)),
        ("data", ", ".join(f"{k}: {v}" for k, v in plan.get("data", {}).items()) or "the model's own"),
        ("metric", plan.get("metric", "")),
        ("seed", str(plan["seed"])),
    ]
    return tuple((name, text) for name, text in rows if text)


def advice(recommendation: Json | None, plan: Json) -> dict[str, Any]:
    """The recommendation's part of a report: its chains, the reasons of the one that was run, what was refused."""
    if not recommendation:
        return {"reasons": tuple({"text": text, "source": "", "rule": ""} for text in plan.get("reasons", ()))}
    ran = [s["technique"] for s in plan["stages"]]
    chains = recommendation["chains"]
    chosen = next((c for c in chains if [s["technique"] for s in c["stages"]] == ran), chains[0] if chains else None)
    return {
        "assumed": tuple(str(text) for text in recommendation["request"].get("assumed", ())),
        "chains": tuple(chain_row(c, c is chosen) for c in chains),
        "reasons": tuple(chosen["reasons"]) if chosen else (),
        "refused": tuple(recommendation["refused"]),
    }


def chain_row(chain: Json, chosen: bool = False) -> dict[str, Any]:
    """An estimated chain as texts."""
    estimate = chain["estimate"]
    return {
        "rank": chain["rank"],
        "chosen": chosen,
        "stages": chain_text(chain["stages"]),
        "size": interval_text(estimate["size_bytes"], bytes_text),
        "compression": interval_text(estimate["compression"], ratio_text),
        "speedup": interval_text(estimate["speedup"], ratio_text),
        "drop": interval_text(estimate["quality_drop"]),
        "fits": chain["fits"],
    }

"""What was asked, recommended and refused, as texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.units import bytes_text, interval_text, ms_text, ratio_text

Json = Mapping[str, Any]


def chain_text(stages: Sequence[Json]) -> str:
    """`distill → finetune → int8_dynamic`; the export is no technique."""
    return " → ".join(s["technique"] for s in stages if s["technique"] != "export") or "do nothing"


def params_text(params: Json) -> str:
    return ", ".join(f"{k} {_value(v)}" for k, v in params.items() if v is not None)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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


def workload_text(work: Json) -> str:
    parts = [f"batch {work['batch']}"]
    if work.get("seq_len"):
        parts.append(f"sequence length {work['seq_len']}")
    if work.get("image_size"):
        parts.append("images " + "×".join(map(str, work["image_size"])))
    return ", ".join([*parts, f"{work['threads']} threads"])


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


def warning_text(warning: Any) -> str:
    """A warning in a line: a text, or a refusal `{technique, observed, required, remedy}`."""
    if isinstance(warning, str):
        return warning
    if "text" in warning:
        return str(warning["text"])
    text = f"{warning['technique']}: {warning['observed']}; needs {warning['required']}"
    return f"{text}: {warning['remedy']}" if warning.get("remedy") else text


def flat_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {flat_text(v)}" for k, v in value.items())
    return ", ".join(map(flat_text, value)) if isinstance(value, list | tuple) else str(value)

"""Plans, stages and warnings in words, for the terminal and for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]


def chain_text(stages: Sequence[Json]) -> str:
    """`distill → finetune → int8_dynamic`; the export is no technique."""
    return " → ".join(s["technique"] for s in stages if s["technique"] != "export") or "do nothing"


def finished_trials(pareto: Json) -> list[Json]:
    """The trials that ran; others were waiting or running when the study ended."""
    return [t for t in pareto["trials"] if t["state"] not in ("waiting", "running")]


def trial_chain(trial: Json) -> str:
    """The chain of a trial; one that failed before it had stages is named as the study names it."""
    return chain_text(trial["stages"]) if trial.get("stages") else str(trial["chain"])


def params_text(params: Json) -> str:
    return ", ".join(f"{k} {_value(v)}" for k, v in params.items() if v is not None)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def claim_text(claim: Json) -> str:
    """What a claim says: `1.3 pp lost`, `0.24 pp gained`, `2.01× faster`, `0.75× as fast`, `4× smaller`."""
    value = claim["value"]
    if value is None:
        return f"{abs(claim['drop']):g} {claim['unit']} {'lost' if claim['drop'] >= 0 else 'gained'}"
    if claim["metric"] == "speedup":
        return f"{value:g}× {'faster' if value > 1 else 'as fast'}"
    return f"{value:g}× smaller" if value > 1 else f"{1 / value:.3g}× as large"


def workload_text(work: Json) -> str:
    parts = [f"batch {work['batch']}"]
    if work.get("seq_len"):
        parts.append(f"sequence length {work['seq_len']}")
    if work.get("image_size"):
        parts.append("images " + "×".join(map(str, work["image_size"])))
    return ", ".join([*parts, f"{work['threads']} threads"])


def warning_text(warning: Any) -> str:
    """A warning in a line: a text, or a refusal `{technique, observed, required, remedy}`."""
    if isinstance(warning, str):
        return warning
    if "text" in warning:
        return str(warning["text"])
    text = f"{warning['technique']}: {warning['observed']}; needs {warning['required']}"
    return f"{text}: {warning['remedy']}" if warning.get("remedy") else text


def flat_text(value: Any) -> str:
    """A JSON value in one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {flat_text(v)}" for k, v in value.items())
    return ", ".join(map(flat_text, value)) if isinstance(value, list | tuple) else str(value)

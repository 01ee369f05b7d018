"""What was measured on the file that ships, as texts: the verdict, the figures, how far the outputs are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from advisor.units import bytes_text, change_text, ms_text, quality_text, ratio_text, significant
from knowledge.values import Quality

Json = Mapping[str, Any]
Unit = Literal["pp", "%"]
PARITY = {"max_abs_diff": "largest difference", "cosine": "mean cosine", "top1_agreement": "same first choice"}


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    note: str


@dataclass(frozen=True)
class MeasuredRow:
    figure: str
    before: str
    after: str
    change: str


def verdict_of(verification: Json | None) -> tuple[str, str, tuple[str, ...]]:
    """State, one sentence, and what was missed by how much."""
    if not verification:
        return "none", "The file was not verified.", ()
    verdict = verification["verdict"]
    if verdict["within_budget"]:
        return "good", "Within the budget, measured on the file that ships.", ()
    return "bad", "The budget is missed.", tuple(m if isinstance(m, str) else m["text"] for m in verdict["misses"])


def quality_drop(verification: Json, unit: Unit | None = None) -> float:
    """Measured loss in the unit asked for, or the metric's own; negative: a gain."""
    return drop_between(verification["baseline"]["quality"], verification["compressed"]["quality"], unit)


def drop_between(before: Json, after: Json, unit: Unit | None = None) -> float:
    """Loss of one score against another, see `Quality.drop_from`."""
    return Quality.model_validate(after).drop_from(Quality.model_validate(before), unit)


def quality_change(before: Json, after: Json, unit: Unit | None = None) -> str:
    """How a score changed, in the unit asked for or the metric's own."""
    drop = drop_between(before, after, unit)
    return change_text(before["value"], after["value"], drop, unit or after["unit"])


def speed_text(speedup: Json) -> str:
    return f"{ratio_text(speedup['value'])} faster ({certain_text(speedup)})"


def certain_text(ratio: Json) -> str:
    """The 95 % confidence interval of a ratio."""
    return f"95 %: {significant(ratio['low'])} to {ratio_text(ratio['high'])}"


def tiles(verification: Json, plan: Json) -> tuple[Tile, ...]:
    """The four figures that a reader looks for first."""
    before, after, speed = verification["baseline"], verification["compressed"], verification["speedup"]
    allowed = plan["budget"]["max_drop"]
    change = quality_change(before["quality"], after["quality"], allowed["unit"])
    latency = f"{ms_text(before['latency_ms']['p50'])} → {ms_text(after['latency_ms']['p50'])}"
    memory = f"{bytes_text(before['peak_memory_bytes'])} before"
    sizes = f"{bytes_text(before['size_bytes'])} → {bytes_text(after['size_bytes'])}"
    return (
        Tile("smaller", ratio_text(verification["compression"]), sizes),
        Tile("faster", ratio_text(speed["value"]), f"{latency} ({certain_text(speed)})"),
        Tile(
            after["quality"]["metric"],
            quality_text(after["quality"]),
            f"{change}; up to {allowed['amount']:g} {allowed['unit']} may be lost",
        ),
        Tile("peak memory", bytes_text(after["peak_memory_bytes"]), memory),
    )


def measured(verification: Json, unit: Unit | None = None) -> tuple[MeasuredRow, ...]:
    """Each figure of the uncompressed and of the compressed file."""
    before, after = verification["baseline"], verification["compressed"]

    def row(figure: str, value: Any, show: Any, change: str = "") -> MeasuredRow:
        return MeasuredRow(figure, show(value(before)), show(value(after)), change)

    rows = [
        row("size on disk", lambda m: m["size_bytes"], bytes_text, f"{ratio_text(verification['compression'])} smaller")
    ]
    if before.get("download_bytes") and after.get("download_bytes"):
        gain = f"{ratio_text(before['download_bytes'] / after['download_bytes'])} smaller"
        rows.append(row("download, entropy coded", lambda m: m["download_bytes"], bytes_text, gain))
    if packed := verification.get("packed"):
        gain = f"{ratio_text(packed['plain_bytes'] / packed['size_bytes'])} smaller than plain"
        gain += f"; {bytes_text(packed['download_bytes'])} entropy coded"
        rows.append(MeasuredRow("weights, packed", "—", bytes_text(packed["size_bytes"]), gain))
    change = quality_change(before["quality"], after["quality"], unit) + _protocol(verification)
    efficiency = significant(verification["efficiency"])
    return (
        *rows,
        row("latency, median", lambda m: m["latency_ms"]["p50"], ms_text, speed_text(verification["speedup"])),
        row("latency, 95th percentile", lambda m: m["latency_ms"]["p95"], ms_text),
        row("peak memory", lambda m: m["peak_memory_bytes"], bytes_text),
        row(after["quality"]["metric"], lambda m: m["quality"], quality_text, change),
        *(_task_score(found) for found in verification.get("lm_eval", ())),
        *(row for found in verification.get("decoding", ()) for row in _decoding(found)),
        MeasuredRow("efficiency", "1", efficiency, "quality ÷ size × speed, relative"),
    )


def _protocol(verification: Json) -> str:
    """What perplexity was taken over."""
    found = verification.get("protocol")
    if not found:
        return ""
    return f"; over {found['tokens']:,} tokens, windows of {found['window']}, stride {found['stride']}"


def _task_score(found: Json) -> MeasuredRow:
    """One metric of an lm-eval task; what may be chance stands behind ±, one standard error."""

    def with_error(value: float | None, error: float | None) -> str:
        shown = "—" if value is None else f"{value:.4g}"
        return shown if error is None else f"{shown} ± {error:.2g}"

    named = found["metric"] + ("" if found["filter"] == "none" else f" ({found['filter']})")
    change = "" if found["difference"] is None else f"{with_error(found['difference'], found['difference_stderr'])}; "
    return MeasuredRow(
        f"{found['task']}, {named}",
        with_error(found["baseline"], found["baseline_stderr"]),
        with_error(found["compressed"], found["stderr"]),
        f"{change}{found['documents']:,} documents, {found['shots']} shots",
    )


def _decoding(found: Json) -> tuple[MeasuredRow, MeasuredRow]:
    """How soon the first token comes, and how fast those after it."""
    before, after = found["baseline"], found["compressed"]
    first, rest = "time_to_first_token_ms_p50", "tokens_per_second_p50"
    at = f"prompt {found['prompt_tokens']}, batch {found['batch']}"
    return (
        MeasuredRow(
            f"first token, {at}",
            ms_text(before[first]),
            ms_text(after[first]),
            speed_text(found["first_token_speedup"]),
        ),
        MeasuredRow(
            f"tokens per second, {at}",
            significant(before[rest]),
            significant(after[rest]),
            speed_text(found["decoding_speedup"]),
        ),
    )


def parity(verification: Json) -> tuple[tuple[str, str], ...]:
    """How far the outputs of the two files are apart."""
    found = verification.get("parity") or {}
    return tuple((PARITY.get(name, name), f"{value:.5g}") for name, value in found.items() if value is not None)

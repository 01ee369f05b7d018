"""Figures as people write and read them: `50MB`, `20ms`, `30m`, `7B`, `2pp`. A megabyte is 10⁶ bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from knowledge.values import Drop, InputError

BYTES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
COUNTS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
MILLISECONDS = {"": 1, "ms": 1, "s": 1000, "us": 1e-3, "µs": 1e-3}
NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµ%×]*)\s*", re.IGNORECASE)


def parse_bytes(field: str, text: str) -> int:
    """`50MB` → 50 000 000; a bare number is bytes. Raises InputError."""
    return max(1, round(_parse(field, text, BYTES, "50MB, 1.5GB or a number of bytes")))


def parse_count(field: str, text: str) -> float:
    """`7B` → 7e9. Raises InputError."""
    return _parse(field, text, COUNTS, "7B, 350M or a number")


def parse_seconds(field: str, text: str) -> float:
    """`30m` → 1800. Raises InputError."""
    return _parse(field, text, SECONDS, "90s, 30m or 2h")


def parse_milliseconds(field: str, text: str) -> float:
    """`20ms` → 20; a bare number is milliseconds. Raises InputError."""
    return _parse(field, text, MILLISECONDS, "20ms or 0.5s")


def parse_ratio(field: str, text: str) -> float:
    """`2` or `2x` → 2. Raises InputError."""
    return _parse(field, text, {"": 1, "x": 1, "×": 1}, "2 for twice as fast")


def parse_drop(field: str, text: str, default_unit: Literal["pp", "%"]) -> Drop:
    """`2pp`, `2%`, or a bare number in the metric's own unit. Raises InputError."""
    amount, unit = _number(field, text, "2, 2pp (points) or 2% (relative)", zero=True)
    if unit not in ("", "pp", "%"):
        raise InputError(field, text, "unknown unit", "use 2, 2pp (points) or 2% (relative)")
    chosen: Literal["pp", "%"] = "pp" if unit == "pp" else "%" if unit == "%" else default_unit
    return Drop(amount=amount, unit=chosen)


def _parse(field: str, text: str, units: Mapping[str, float], example: str) -> float:
    amount, unit = _number(field, text, example)
    if unit not in units:
        raise InputError(field, text, "unknown unit", f"use {example}")
    found = amount * units[unit]
    if not math.isfinite(found):
        raise InputError(field, text, "is too large to count", f"use {example}")
    return found


def _number(field: str, text: str, example: str, zero: bool = False) -> tuple[float, str]:
    text = str(text)
    if text.strip().startswith(("-", "−")):
        raise InputError(field, text, "is below zero", f"use {example}")
    found = NUMBER.fullmatch(text)
    amount = float(found[1]) if found else math.nan
    if not found or not math.isfinite(amount):
        raise InputError(field, text, "is not a number with a unit", f"use {example}")
    if amount == 0 and not zero:
        raise InputError(field, text, "must be above zero", f"use {example}")
    return amount, found[2].lower()


def bytes_text(size: float) -> str:
    """
    >>> bytes_text(23_104_512), bytes_text(812), bytes_text(3_996)
    ('23.1 MB', '812 B', '4.00 KB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if abs(size) >= 0.9995 * scale:
            return f"{significant(size / scale)} {unit}"
    return f"{size:.0f} B"


def count_text(count: float) -> str:
    """
    >>> count_text(1_949_824), count_text(641)
    ('1.95 M', '641')
    """
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(count) >= 0.9995 * scale:
            return f"{significant(count / scale)} {unit}"
    return f"{count:.0f}"


def ms_text(milliseconds: float) -> str:
    """
    >>> ms_text(12.345), ms_text(0.0042), ms_text(2500)
    ('12.3 ms', '4.20 µs', '2.50 s')
    """
    if milliseconds >= 1000:
        return f"{significant(milliseconds / 1000)} s"
    return f"{significant(milliseconds)} ms" if milliseconds >= 0.01 else f"{significant(milliseconds * 1000)} µs"


def seconds_text(seconds: float) -> str:
    """
    >>> seconds_text(0.25), seconds_text(75), seconds_text(7300)
    ('0.250 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{significant(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def ratio_text(ratio: float) -> str:
    """
    >>> ratio_text(4.0312), ratio_text(13.96)
    ('4.03×', '14.0×')
    """
    return f"{significant(ratio)}×"


def change_text(before: float, after: float, drop: float, unit: str) -> str:
    """How a score changed, by its own sign: a perplexity that falls, falls, though that is a gain.

    >>> change_text(0.99, 0.9817, 0.83, "pp"), change_text(212.9, 206.2, -3.14, "%"), change_text(0.5, 0.5, 0.0, "pp")
    ('−0.83 pp', '−3.14 %', '0.00 pp')
    """
    shown = f"{abs(drop):.2f}"
    if float(shown) == 0:
        return f"{shown} {unit}"
    return f"{'−' if after < before else '+'}{shown} {unit}"


def loss_text(drop: float, unit: str) -> str:
    """What was lost of a quality, whichever way its score counts.

    >>> loss_text(0.83, "pp"), loss_text(-0.2, "%")
    ('0.83 pp lost', '0.20 % gained')
    """
    return f"{abs(drop):.2f} {unit} {'gained' if drop < -0.005 else 'lost'}"


def significant(value: float) -> str:
    """Three significant digits, never in scientific notation where it can be avoided.

    >>> significant(123.4), significant(9.996), significant(0.01234), significant(0)
    ('123', '10.0', '0.0123', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    digits = 2 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{min(max(digits, 0), 12)}f}"


def interval_text(interval: Mapping[str, Any], show: Callable[[float], str] | None = None) -> str:
    """An estimated figure `{low, mid, high, unit, basis}` as `low–high`, or one figure where both read the same.

    >>> interval_text({"low": 0.5, "mid": 1, "high": 2.25, "unit": "pp", "basis": ""})
    '0.50–2.25 pp'
    >>> interval_text({"low": 33, "mid": 66, "high": 132, "unit": "s", "basis": ""}, seconds_text)
    '33.0 s – 2 min 12 s'
    """
    if show is not None:
        low, high = show(interval["low"]), show(interval["high"])
        number, _, unit = low.partition(" ")
        if unit and low != high and high.partition(" ")[2] == unit:
            low = number
    else:
        low, high = f"{interval['low']:.2f}", f"{interval['high']:.2f} {interval['unit']}"
        if high.startswith(f"{low} "):
            return high
    if low == high:
        return high
    if low.endswith("×") and high.endswith("×"):
        low = low[:-1]
    return f"{low} – {high}" if low.startswith("-") or high.startswith("-") or " " in low else f"{low}–{high}"


def quality_text(quality: Mapping[str, Any]) -> str:
    """A score: accuracies in percent, others as they are.

    >>> quality_text({"metric": "accuracy", "value": 0.9917, "unit": "pp"})
    '99.17 %'
    """
    return f"{100 * quality['value']:.2f} %" if quality["unit"] == "pp" else f"{quality['value']:.4g}"

"""Charts as geometry: what the SVG template draws. Titles and labels stay plain text, which the template escapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.texts import trial_chain
from advisor.units import bytes_text, loss_text, ratio_text, significant

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 16, 46
COLORS = 6  # classes c0 … c5 in the style sheet


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    style: str
    title: str
    label: str = ""


@dataclass(frozen=True)
class Line:
    points: str  # of an SVG polyline
    style: str
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """Ticks, lines and dots in pixels of WIDTH × HEIGHT; `legend` pairs a style with its meaning."""

    title: str
    caption: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    dots: tuple[Dot, ...] = ()
    lines: tuple[Line, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class Scale:
    """Values onto pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, show: Callable[[float], str]) -> tuple[Tick, ...]:
        return tuple(Tick(self(v), show(v)) for v in round_values(self.low, self.high))


def round_values(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between low and high.

    >>> round_values(0, 9.5)
    [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    span = (high - low) or 1.0
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def axes(xs: Sequence[float], ys: Sequence[float], zero_x: bool = False, zero_y: bool = False) -> tuple[Scale, Scale]:
    """Scales that hold all values with a margin."""
    return (
        _scale(xs, LEFT, WIDTH - RIGHT, zero_x),
        _scale(ys, HEIGHT - BOTTOM, TOP, zero_y),
    )


def _scale(values: Sequence[float], start: float, end: float, zero: bool) -> Scale:
    low, high = min(values), max(values)
    if zero:
        low = min(low, 0.0)
    margin = 0.06 * ((high - low) or abs(high) or 1.0)
    return Scale(low if zero and low == 0 else low - margin, high + margin, start, end)


def polyline(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def training_curve(technique: str, curve: Sequence[Mapping[str, Any]]) -> Chart:
    """Loss by step of one training stage; `curve` holds at least two points."""
    steps, losses = [float(p["step"]) for p in curve], [float(p["loss"]) for p in curve]
    x, y = axes(steps, losses, zero_x=True)
    dots = tuple(
        Dot(x(s), y(v), "c0 small", f"step {s:g}: loss {significant(v)}")
        for s, v in zip(steps, losses, strict=True)
        if len(steps) <= 40
    )
    path = polyline([(x(s), y(v)) for s, v in zip(steps, losses, strict=True)])
    caption = f"Loss from {significant(losses[0])} to {significant(losses[-1])} in {steps[-1]:g} steps."
    return Chart(
        technique, caption, "step", "loss", x.ticks("{:g}".format), y.ticks("{:g}".format), dots, (Line(path, "c0"),)
    )  # fmt: skip


def trial_charts(pareto: Mapping[str, Any], max_drop: float | None = None, drop_unit: str = "") -> tuple[Chart, ...]:
    """Size against speed and size against quality, one dot per measured trial; empty where no trial got as far."""
    trials = [t for t in pareto["trials"] if t.get("size_bytes") and t.get("speedup") is not None]
    if not trials:
        return ()
    chains = list(dict.fromkeys(trial_chain(t) for t in trials))
    colors = {chain: f"c{min(i, COLORS - 1)}" for i, chain in enumerate(chains)}
    legend = tuple((colors[c], c) for c in chains)
    base = pareto.get("baseline", {}).get("size_bytes")
    speed = _trial_chart(pareto, trials, colors, legend, base, "speedup", 1.0, ratio_text)
    unit = drop_unit or "pp"
    quality = _trial_chart(
        pareto, trials, colors, (), base, "quality_drop", 0.0, lambda v: loss_text(v, unit), max_drop
    )  # fmt: skip
    return speed, quality


def _trial_chart(
    pareto: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    colors: Mapping[str, str],
    legend: tuple[tuple[str, str], ...],
    base: float | None,
    field: str,
    base_value: float,
    show: Callable[[float], str],
    limit: float | None = None,
) -> Chart:
    xs = [t["size_bytes"] / 1e6 for t in trials] + ([base / 1e6] if base else [])
    ys = [t[field] for t in trials] + [base_value] + ([limit] if limit is not None else [])
    x, y = axes(xs, ys, zero_x=True)
    dots = [_trial_dot(t, x, y, field, colors, pareto) for t in trials]
    if base:
        dots.append(Dot(x(base / 1e6), y(base_value), "base", f"uncompressed: {bytes_text(base)}", "uncompressed"))
    front = sorted((t for t in trials if t["number"] in pareto["front"]), key=lambda t: t["size_bytes"])
    lines = []
    if field == "speedup" and len(front) > 1:
        path = polyline([(x(t["size_bytes"] / 1e6), y(t[field])) for t in front])
        lines.append(Line(path, "front", "Pareto front"))
    if limit is not None:
        path = polyline([(LEFT, y(limit)), (WIDTH - RIGHT, y(limit))])
        lines.append(Line(path, "limit", f"allowed: {show(limit)}"))
    speed = field == "speedup"
    return Chart(
        title="Size and speed" if speed else "Size and quality",
        caption="Up and left is better." if speed else "Down and left is better; the dashed line is the budget.",
        x_label="file size, MB",
        y_label="times faster" if speed else "quality lost",
        x_ticks=x.ticks("{:g}".format),
        y_ticks=y.ticks("{:g}".format),
        dots=tuple(dots),
        lines=tuple(lines),
        legend=legend,
    )


def _trial_dot(
    trial: Mapping[str, Any], x: Scale, y: Scale, field: str, colors: Mapping[str, str], pareto: Mapping[str, Any]
) -> Dot:
    best = trial["number"] == pareto.get("best")
    style = colors[trial_chain(trial)] + ("" if trial["feasible"] else " missed") + (" best" if best else "")
    words = "best, " if best else "" if trial["feasible"] else "misses the budget, "
    title = (
        f"trial {trial['number']} ({words}{trial_chain(trial)}): {bytes_text(trial['size_bytes'])}, "
        f"{ratio_text(trial['speedup'])} faster, quality lost {trial['quality_drop']:.2f}"
    )
    return Dot(x(trial["size_bytes"] / 1e6), y(trial[field]), style, title, "best" if best else "")


@dataclass(frozen=True)
class Span:
    """An estimated interval and, where there is one, the measured value: shares of a line from 0 to 100."""

    low: float
    mid: float
    high: float
    measured: float | None


def span(low: float, mid: float, high: float, measured: float | None) -> Span:
    """Positions of an estimate and its measurement on one line with margins."""
    values = [low, mid, high] + ([measured] if measured is not None else [])
    least, most = min(values), max(values)
    width = (most - least) or abs(most) or 1.0
    scale = Scale(least - 0.15 * width, most + 0.15 * width, 0, 100)
    return Span(scale(low), scale(mid), scale(high), None if measured is None else scale(measured))

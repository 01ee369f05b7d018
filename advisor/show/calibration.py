"""What a calibration measured, on the terminal."""

from __future__ import annotations

from typing import Any

import click

from advisor.show.console import heading, pairs, paragraph, table

UNITS = {
    "gbps": "GB/s",
    "us": "µs",
    "ns": "ns",
    "bytes": "bytes",
    "factor": "×",
    "fp32": "GFLOP/s",
    "block": "channels",
}


def show_calibration(found: dict[str, Any]) -> None:
    """Where the target was written, its figures, and how well they explain what was measured."""
    target = found["target"]
    click.secho(target["about"], bold=True)
    pairs(
        [
            ("written to", found["file"]),
            ("accelerates", ", ".join(target["accelerates"]) or "nothing beside fp32"),
            ("measured", f"{found['probes']} graphs in {found['seconds']:.0f} s"),
            ("misfit", f"{100 * found['misfit']:.0f} % between the graphs' times and these figures (median)"),
        ]
    )
    heading("Figures")
    figures = [(name, value) for name, value in target.items() if isinstance(value, dict) and "source" in value]
    rows = [(name, _amount(name, f["value"]), f["source"].removeprefix("measured: ")) for name, f in figures]
    table(("figure", "value", "from"), rows, ("value",), "from")
    click.echo()
    paragraph(f"Use it: advisor recommend MODEL --target {found['use']}")


def _amount(name: str, value: float) -> str:
    """
    >>> _amount("cache_gbps", 96.7), _amount("cache_bytes", 4352000.0), _amount("efficiency", 1.0)
    ('96.7 GB/s', '4,352,000 bytes', '1')
    """
    number = f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{number} {UNITS.get(name.rpartition('_')[2], '')}".rstrip()

"""What `advisor compress` and `advisor unpack` did, on the terminal."""

from __future__ import annotations

import click

from advisor.show.console import pairs, paragraph
from advisor.texts import Json
from advisor.units import bytes_text, significant


def show_compressed(result: Json) -> None:
    """The folder, what became of its blocks, what that took, and the warnings."""
    params = ", ".join(f"{name} {value}" for name, value in result["params"].items())
    click.secho(f"{result['technique']}: {result['folder']}", bold=True)
    resumed = f", {result['resumed_at']} of them by an earlier run" if result["resumed_at"] else ""
    pairs(
        [
            ("with", params),
            ("blocks", f"{result['blocks']}{resumed}; {result['layers']} layers"),
            ("zeros", f"{result['zeros']:.1%} of the weights of these layers"),
            ("weights", _weights(result)),
            ("load with", result["load"]),
            ("calibration", f"{result['calibration_tokens']:,} tokens"),
            ("took", f"{significant(result['seconds'])} s, {bytes_text(result['peak_memory_bytes'])} at its peak"),
        ],
        indent="  ",
    )
    for warning in result["warnings"]:
        paragraph(warning, first="  - ")


def _weights(result: Json) -> str:
    """What they took and take, and of the packed ones alone."""
    before, after = (bytes_text(result[name]) for name in ("bytes_before", "bytes_after"))
    if not (packed := result["packed"]):
        return f"{after}, {before} before"
    scheme = packed["scheme"]
    how = f"in {scheme['bits']} bits" if scheme else "without their zeros"
    these = f"{bytes_text(packed['bytes_after'])}, {bytes_text(packed['bytes_before'])} before"
    return f"{after}, {before} before; of these {packed['layers']} layers {how}: {these}"


def show_unpacked(result: Json) -> None:
    """The folder, and what its files take."""
    click.secho(result["folder"], bold=True)
    after, before = bytes_text(result["bytes_after"]), bytes_text(result["bytes_before"])
    pairs([("weights", f"{result['weights']} unpacked"), ("files", f"{after}, {before} packed")], indent="  ")

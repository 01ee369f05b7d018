"""What `advisor compress` did, on the terminal."""

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
            ("calibration", f"{result['calibration_tokens']:,} tokens"),
            ("took", f"{significant(result['seconds'])} s, {bytes_text(result['peak_memory_bytes'])} at its peak"),
        ],
        indent="  ",
    )
    for warning in result["warnings"]:
        paragraph(warning, first="  - ")

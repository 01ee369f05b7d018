"""`advisor targets`: parse, call one function, show."""

from __future__ import annotations

from pathlib import Path

import click

from advisor.show import console, options


@click.group()
def targets() -> None:
    """Where models run: hardware and deployment limits."""


@targets.command(name="list")
@options.knowledge
@options.as_json
def list_targets(knowledge: str | None, as_json: bool) -> None:
    """List the targets that are known.

    \b
    Example:
      advisor targets list
    """
    from advisor.show.machine import show_targets
    from knowledge.load import load_knowledge

    known = load_knowledge(knowledge).targets.values()
    if as_json:
        rows = [t.model_dump(mode="json", by_alias=True) for t in known]
        console.print_json({"schema": "advisor.targets/1", "targets": rows})
    else:
        show_targets(known)


@targets.command()
@click.option("--threads", type=click.IntRange(1), metavar="N", default=1, help="Threads of a request. [1]")
@click.option("--class", "target_class", metavar="NAME", default="server", help="Class of the target. [server]")
@click.option("--max-size", metavar="50MB", help="Largest file that may be deployed here. [no limit]")
@click.option("--max-memory", metavar="200MB", help="Most memory at run time. [no limit]")
@click.option(
    "--out",
    "-o",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File to write. [targets/this-machine.yaml in your folder]",
)
@options.as_json
def calibrate(
    threads: int, target_class: str, max_size: str | None, max_memory: str | None, out: Path | None, as_json: bool
) -> None:
    """Measure this machine and keep it as the target this-machine.

    Small generated graphs run through ONNX Runtime for about half a minute;
    estimates for --target this-machine then rest on what they took.

    \b
    Example:
      advisor targets calibrate
    """
    from advisor.calibration import calibrate_machine, to_json
    from advisor.show.calibration import show_calibration
    from advisor.units import parse_bytes

    measured = calibrate_machine(
        out,
        threads=threads,
        target_class=target_class,
        max_size_bytes=parse_bytes("max-size", max_size) if max_size else None,
        max_memory_bytes=parse_bytes("max-memory", max_memory) if max_memory else None,
        progress=console.progress,
    )
    found = to_json(*measured)
    console.answer(as_json, found, lambda: show_calibration(found))

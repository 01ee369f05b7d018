"""The whole road on an embedded example, told as it goes."""

from __future__ import annotations

from pathlib import Path

import click

from advisor.advise import advise
from advisor.request import Request
from advisor.show.console import progress
from advisor.show.recommendation import show_chains
from advisor.show.runs import show_search
from advisor.studies.search import search

MODEL, TARGET, MAX_DROP = "zoo:digits-cnn", "server-cpu", "2pp"


def show_demo(out: Path, trials: int) -> int:
    """Compress `digits-cnn` into the study folder `out`; returns the exit code of the best plan's run."""
    request = Request.parse(model=MODEL, target=TARGET, max_drop=MAX_DROP)
    click.secho(f"advisor recommend {MODEL} --target {TARGET} --max-drop {MAX_DROP}", bold=True)
    show_chains(advise(request).to_json()["chains"])
    click.echo()
    command = f"advisor search {MODEL} --target {TARGET} --max-drop {MAX_DROP} --trials {trials} --out {out}"
    click.secho(command, bold=True)
    result = search(request, trials, out, progress=progress)
    show_search(result, out)
    return result.exit_code

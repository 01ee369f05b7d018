"""Measured chains on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import click

from advisor.show.console import heading, paragraph, table
from advisor.texts import params_text
from advisor.units import change_text, ratio_text
from knowledge.evidence import Evidence
from knowledge.techniques.catalog import CATALOG
from knowledge.values import Stage


def show_evidence(rows: Sequence[Evidence], shipped: bool) -> None:
    """A table for each model and protocol: figures of different protocols are not compared."""
    if not rows:
        hint = "" if shipped else " `advisor run` and `advisor search` add theirs; --shipped shows the package's."
        paragraph(f"No such evidence.{hint}")
        return
    models = {row.model for row in rows}
    click.secho(f"{count_text(len(rows))} of {len(models)} model{'s' if len(models) > 1 else ''}", bold=True)
    for (model, protocol), group in groupby(sorted(rows, key=place), place):
        heading(model)
        paragraph(protocol, indent="  ")
        cells = [
            (
                row.id,
                " → ".join(stage_text(stage) for stage in row.stages),
                change_text(row.baseline_quality, row.quality, row.drop, row.unit),
                ratio_text(row.compression),
                ratio_text(row.speedup),
            )
            for row in group
        ]
        table(("id", "chain", "quality", "smaller", "faster"), cells, ("quality", "smaller", "faster"), fold="chain")


def show_count(count: int, done: str) -> None:
    click.echo(f"{count_text(count)} {done}")


def count_text(count: int) -> str:
    """
    >>> count_text(1), count_text(0)
    ('1 row', '0 rows')
    """
    return f"{count} row{'' if count == 1 else 's'}"


def place(row: Evidence) -> tuple[str, str]:
    return row.model, row.protocol


def stage_text(stage: Stage) -> str:
    """A technique with its dial and whatever departs from the defaults.

    >>> stage_text(Stage(technique="channels", params={"ratio": 0.5, "importance": "l2", "round_to": 4}))
    'channels (ratio 0.5)'
    """
    cls = CATALOG.get(stage.technique)
    if cls is None:  # of an older or newer version
        return stage.technique
    usual = {name: field.default for name, field in cls.model_fields.items()}
    told = {k: v for k, v in stage.params.items() if k == cls.dial or v != usual.get(k)}
    text = params_text(told)
    return f"{stage.technique} ({text})" if text else stage.technique

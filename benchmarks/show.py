"""Rows of a benchmark: a table for people, a JSON list with --json."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows the way the command line asks for."""
    if "--json" in sys.argv[1:]:
        print(json.dumps(list(rows), indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)

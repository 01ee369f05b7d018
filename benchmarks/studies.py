"""Searches that the benchmarks look at: small, real, on a model of the zoo, in a store of their own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any


def study(model: str, trials: int) -> dict[str, Any]:
    """`pareto.json` of a fresh search that shares nothing with earlier ones."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADVISOR_STORE"] = str(Path(folder) / "store")
        from advisor import search

        result = search(model, target="server-cpu", trials=trials, out=Path(folder) / "study")
        found: dict[str, Any] = result.pareto
        return found

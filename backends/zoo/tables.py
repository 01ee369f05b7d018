"""Write the embedded examples' tables, so that planning needs no torch: python -m backends.zoo.tables [NAME...]"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from backends.models import load
from backends.profile import profile
from backends.zoo import zoo_names
from knowledge.files import write_text
from knowledge.layers import LayerTable, table_to_json

TABLES = Path(__file__).parent / "tables"


def packaged(name: str) -> LayerTable:
    """The table that ships for a zoo model: its profile, all weights taken as dense (training moves single zeros)."""
    layers = profile(load(f"zoo:{name}"))
    return layers.change(np.ones(len(layers), dtype=bool), density=1.0, pattern="dense")


def write(names: tuple[str, ...]) -> None:
    """Write the tables of these models."""
    for name in names:
        write_text(TABLES / f"{name}.json", json.dumps(table_to_json(packaged(name)), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    write(tuple(sys.argv[1:]) or zoo_names())

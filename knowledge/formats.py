"""A table with layers as a decision says that they are stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from knowledge.layers import LayerTable
from knowledge.values import LayerFormat

COLUMNS = ("bits", "group_size", "scale_bits", "zero_bits", "bias_bits")


def stored_as(layers: LayerTable, formats: Mapping[str, LayerFormat]) -> LayerTable:
    """The table with the rows that `formats` names in them; others stay."""
    where = np.isin(layers.path, list(formats))
    found = [formats[path] for path in layers.path[where]]
    return layers.change(where, **{column: [getattr(f, column) for f in found] for column in COLUMNS})

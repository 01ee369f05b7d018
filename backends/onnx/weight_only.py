"""Dense weights and embeddings rounded to nearest, in groups of a row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backends.onnx.blockwise import Blocks, Matrix
from backends.onnx.grouping import store_in_groups
from knowledge.values import Decision

if TYPE_CHECKING:
    from backends.context import Context
    from knowledge.techniques.groups import WeightOnly


def apply(technique: WeightOnly, path: Path, out: Path, context: Context) -> Decision:
    """Write `out` as `path` with weights of a few bits, which the runtime's products and lookups unpack as they read.

    No data are needed. The decision names what was left in float and why.
    """

    def rounded(matrix: Matrix, group_size: int) -> Blocks:
        return Blocks.nearest(matrix.rows, technique.bits, group_size, technique.symmetric)

    return store_in_groups(technique, path, out, context, rounded)

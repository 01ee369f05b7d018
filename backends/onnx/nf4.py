"""Dense weights as indices into 16 values that suit a normal distribution; embeddings and head as integers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backends.onnx.blockwise import Matrix, Nf4Blocks
from backends.onnx.grouping import store_in_groups
from knowledge.values import Decision

if TYPE_CHECKING:
    from backends.context import Context
    from knowledge.techniques.groups import Nf4


def apply(technique: Nf4, path: Path, out: Path, context: Context) -> Decision:
    """Write `out` as `path` with dense weights in NF4.

    The runtime looks nothing up in NF4: embeddings, and the head that may share their numbers, become integers of
    `embedding_bits` without zero points. The decision names what was left in float and why.
    """

    def rounded(matrix: Matrix, group_size: int) -> Nf4Blocks:
        return Nf4Blocks.nearest(matrix.rows, group_size)

    return store_in_groups(technique, path, out, context, rounded)

"""Experts in 4 bits, attention layers in 8; embeddings and head as in every form in groups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backends.onnx import graph as graphs
from backends.onnx.blockwise import Blocks, Matrix
from backends.onnx.experts import Stack, store_stacks
from backends.onnx.grouping import store_rows
from backends.onnx.strip import strip_model
from backends.quantize.left_alone import left_alone
from knowledge.values import Decision

if TYPE_CHECKING:
    from backends.context import Context
    from knowledge.techniques.mixed import ExpertsInt4


def apply(technique: ExpertsInt4, path: Path, out: Path, context: Context) -> Decision:
    """Write `out` as `path` with stacks of experts in one operator of the runtime each, rounded to nearest.

    The decision names what was left in float and why, routers among it.
    """

    def stack(found: Stack) -> Blocks:
        return Blocks.nearest(found.rows, 4, technique.group_size, technique.symmetric)

    def rounded(matrix: Matrix, group_size: int) -> Blocks:
        return Blocks.nearest(matrix.rows, technique.dense_bits, group_size, technique.symmetric)

    model, layers = graphs.load(path), context.layers
    formats, obstacles = store_stacks(technique, model, layers, stack)
    others = store_rows(technique, model, layers, rounded)
    formats, obstacles = formats | others[0], obstacles | others[1]
    graphs.drop_unused_constants(model.graph)
    strip_model(model)
    graphs.save(model, out)
    skipped = tuple(left_alone(technique, layers, formats, obstacles))
    return Decision(technique=technique.id, formats=dict(sorted(formats.items())), skipped=skipped)

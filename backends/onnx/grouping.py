"""A technique's plan for the rows of a table, carried out on a file: what is stored in groups, what stays and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx.blockwise import Blocks, Matrix, Nf4Blocks, matrices, store_blocks, store_nf4
from backends.onnx.formats import owners
from backends.onnx.strip import strip_model
from backends.quantize.left_alone import left_alone
from knowledge.layers import LayerTable
from knowledge.techniques.groups import GroupWeights
from knowledge.values import Decision, LayerFormat, RunFailed

if TYPE_CHECKING:
    from backends.context import Context

Rounded = Callable[[Matrix, int], Blocks | Nf4Blocks]  # (a dense layer's matrix, group size) -> what to store


def store_in_groups(technique: GroupWeights, path: Path, out: Path, context: Context, rounded: Rounded) -> Decision:
    """Write `out` as `path` with the rows that the technique chooses in groups; dense layers as `rounded` has them.

    Embeddings and head are rounded to nearest. The decision names what was left in float and why. Raises RunFailed for
    weights that are not finite.
    """
    model = graphs.load(path)
    formats, obstacles = store_rows(technique, model, context.layers, rounded)
    graphs.drop_unused_constants(model.graph)
    strip_model(model)
    graphs.save(model, out)
    skipped = tuple(left_alone(technique, context.layers, formats, obstacles))
    return Decision(technique=technique.id, formats=dict(sorted(formats.items())), skipped=skipped)


def store_rows(
    technique: GroupWeights, model: ir.Model, layers: LayerTable, rounded: Rounded
) -> tuple[dict[str, LayerFormat], dict[str, str]]:
    """The same on a model in memory: formats of what is in groups now, obstacles of what could not be, by path."""
    ends, touched = technique.end_groups(layers), technique.touches(layers)
    formats: dict[str, LayerFormat] = {}
    obstacles: dict[str, str] = {}
    for row, found in matrices_by_row(model.graph, layers).items():
        name, at_end = str(layers.path[row]), bool(ends[row])
        if not touched[row]:
            continue
        if obstacle := next((f"{m.name} {m.obstacle}" for m in found if m.obstacle), ""):
            obstacles[name] = obstacle
            continue
        for matrix in found:
            blocks = _end(technique, matrix, int(ends[row])) if at_end else rounded(matrix, technique.group_size)
            _store(technique, matrix, blocks)
            formats[name] = blocks.format
    for row in (layers.tied_to != "").nonzero()[0]:  # a tied row is stored as its owner is
        if (owner := layers.tied_to[row]) in formats:
            formats[str(layers.path[row])] = formats[owner]
    return formats, obstacles


def matrices_by_row(graph: ir.Graph, layers: LayerTable) -> Mapping[int, list[Matrix]]:
    """Row of the table -> the matrices that hold it: two of a factored layer."""
    rows = {path: i for i, path in enumerate(layers.path)}
    found: dict[int, list[Matrix]] = defaultdict(list)
    for matrix in matrices(graph):
        for path in owners(matrix.name, rows)[:1]:
            found[rows[path]].append(matrix)
    return found


def _end(technique: GroupWeights, matrix: Matrix, group_size: int) -> Blocks:
    bits = technique.embedding_bits
    return Blocks.nearest(matrix.rows, bits, group_size, symmetric=not technique.zero_bits(bits))


def _store(technique: GroupWeights, matrix: Matrix, blocks: Blocks | Nf4Blocks) -> None:
    if not bool(blocks.scales.isfinite().all()):
        raise RunFailed(f"{technique.id}: {matrix.name} holds numbers that are not finite; nothing was written")
    if isinstance(blocks, Nf4Blocks):
        store_nf4(matrix, blocks)
    else:
        store_blocks(matrix, blocks, technique.accuracy_level)

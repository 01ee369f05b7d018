"""A technique's plan for the rows of a table, carried out on a file: what is stored in groups, what stays and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx.blockwise import Blocks, Matrix, Nf4Blocks, matrices, store_blocks, store_nf4
from backends.onnx.formats import owners
from backends.onnx.strip import strip_model
from knowledge.layers import LayerTable
from knowledge.techniques.groups import LOOKUP_GROUPS, GroupWeights
from knowledge.values import Decision, LayerFormat, Refusal, RunFailed

if TYPE_CHECKING:
    from backends.context import Context

Rounded = Callable[[Matrix, int], Blocks | Nf4Blocks]  # (a dense layer's matrix, group size) -> what to store


def store_in_groups(technique: GroupWeights, path: Path, out: Path, context: Context, rounded: Rounded) -> Decision:
    """Write `out` as `path` with the rows that the technique chooses in groups; dense layers as `rounded` has them.

    Embeddings and head are rounded to nearest. The decision names what was left in float and why. Raises RunFailed for
    weights that are not finite.
    """
    model, layers = graphs.load(path), context.layers
    ends, body = technique.end_groups(layers), technique.body(layers)
    formats: dict[str, LayerFormat] = {}
    obstacles: dict[str, str] = {}
    for row, found in _by_row(model.graph, layers).items():
        name, at_end = str(layers.path[row]), bool(ends[row])
        if not (at_end or body[row]):
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
    graphs.drop_unused_constants(model.graph)
    strip_model(model)
    graphs.save(model, out)
    skipped = tuple(left_alone(technique, layers, formats, obstacles))
    return Decision(technique=technique.id, formats=dict(sorted(formats.items())), skipped=skipped)


def _by_row(graph: ir.Graph, layers: LayerTable) -> Mapping[int, list[Matrix]]:
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


# -- what stays ------------------------------------------------------------------------------------


def left_alone(
    technique: GroupWeights, layers: LayerTable, formats: Mapping[str, LayerFormat], obstacles: Mapping[str, str]
) -> Iterator[Refusal]:
    """One refusal for each row of a kind that the technique is for and that stays in float, unless it was asked to."""
    dense, touched = technique.dense(layers), technique.touches(layers)
    head = (layers.kind == "linear") & (layers.role == "head")
    at_end = (head | (layers.kind == "embedding")) & (technique.embedding_bits < 32) & layers.owned
    for row in range(len(layers)):
        path, inputs = str(layers.path[row]), int(layers.inputs[row])
        if path in formats:
            continue
        if touched[row] and layers.owned[row]:
            observed = obstacles.get(path, f"{path} is not read by a product or a lookup alone")
            yield _refusal(technique, "groups-other-readers", observed, "a matrix that products or lookups read")
        elif dense[row]:
            yield _refusal(technique, "groups-too-wide", f"{path} is {inputs} wide", technique.requirement())
        elif at_end[row]:
            required = f"rows of whole groups of {LOOKUP_GROUPS[0]}" if not head[row] else technique.requirement()
            yield _refusal(technique, "groups-too-wide", f"{path} is {inputs} wide", required)
        elif layers.role[row] == "router":
            yield _refusal(
                technique, "groups-router", f"{path} is a router", "layers whose rounding sends no token away"
            )
        elif layers.kind[row] == "experts":
            observed = f"{path} is a stack of {layers.copies[row]} experts"
            yield _refusal(
                technique, "groups-stacked-experts", observed, "a matrix for each product: no kernel has more"
            )


def _refusal(technique: GroupWeights, rule: str, observed: str, required: str) -> Refusal:
    return Refusal(technique=technique.id, rule=rule, observed=observed, required=required)

"""Weights of a torch model that were rounded, stored in groups in the file that was exported from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import Tensor

from backends.onnx import graph as graphs
from backends.onnx.blockwise import Blocks, Matrix, matrices, store_blocks
from backends.onnx.dense import Dense
from backends.onnx.divide import divide_input
from backends.onnx.strip import strip_model
from backends.quantize.stored import Grid, Grids
from knowledge.formats import stored_as
from knowledge.layers import LayerTable
from knowledge.values import LayerFormat, Refusal


def store_grids(path: Path, grids: Grids, layers: LayerTable) -> tuple[LayerTable, tuple[Refusal, ...]]:
    """Store the weights that lie on grids in groups, in place, and divide the inputs that they want divided.

    The file stands for the same numbers as before. What cannot be stored so stays in float: the table of the file says
    so, and there is a warning for each.
    """
    model = graphs.load(path)
    there = {matrix.name: matrix for matrix in matrices(model.graph)}
    obstacles = {name: why for name in grids if (why := _obstacle(name, there, layers))}
    chosen = [(there[name], grid) for name, grid in grids.items() if name in there and name not in obstacles]
    _divide_inputs(chosen)
    for matrix, grid in chosen:
        store_blocks(matrix, _blocks(matrix, grid), grid.accuracy_level)
    graphs.drop_unused_constants(model.graph)
    strip_model(model)
    graphs.save(model, path)
    float_paths = [path for path in layers.path if any(_holds(path, name) for name in obstacles)]
    stored = stored_as(layers, dict.fromkeys(float_paths, LayerFormat(bits=32)))
    return stored, tuple(_in_float(name, why) for name, why in obstacles.items())


def _obstacle(name: str, there: Mapping[str, Matrix], layers: LayerTable) -> str:
    """Why a weight cannot be stored in groups; empty where it can, and where the file has no such layer at all."""
    if name in there:
        return there[name].obstacle
    return "is in the file in another form" if any(_holds(path, name) for path in layers.path) else ""


def _holds(path: str, parameter: str) -> bool:
    return parameter.startswith(f"{path}.")


def _blocks(matrix: Matrix, grid: Grid) -> Blocks:
    rows = matrix.rows if grid.factors is None else matrix.rows * grid.factors.cpu()
    zeros, symmetric = grid.stored_zeros.cpu(), grid.zeros is None
    return Blocks.on_grid(rows, grid.scales.cpu(), zeros, grid.format.bits, grid.group_size, symmetric)


def _divide_inputs(rounded: Sequence[tuple[Matrix, Grid]]) -> None:
    """Layers that read the same and have the same factors share a division."""
    groups: dict[tuple[ir.Value, bytes], list[Dense]] = defaultdict(list)
    factors: dict[bytes, Tensor] = {}
    for matrix, grid in rounded:
        if grid.factors is not None:
            key = np.asarray(grid.factors.cpu()).tobytes()
            factors[key] = grid.factors
            for layer in matrix.products:
                groups[layer.x, key].append(layer)
    for (x, key), layers in groups.items():
        if bool((factors[key] != 1).any()):
            divide_input(x, layers, np.asarray(factors[key].cpu()))


def _in_float(name: str, why: str) -> Refusal:
    return Refusal(
        technique="export",
        rule="groups-other-readers",
        observed=f"{name} {why}: it stays in float, rounded",
        required="a matrix that products or lookups read",
    )

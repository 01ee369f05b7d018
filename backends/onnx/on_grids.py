"""Weights of a torch model that were rounded, stored in groups in the file that was exported from it."""

from __future__ import annotations

import dataclasses
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
from backends.onnx.experts import Experts, Stack, expert_layers, store_experts
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
    mixtures = [found for found in expert_layers(model.graph) if _one_form(grids, found)]
    of_experts = {stack.name for found in mixtures for stack in (found.up, found.down)}
    obstacles = {name: why for name in grids if name not in of_experts and (why := _obstacle(name, there, layers))}
    chosen = [(there[name], grid) for name, grid in grids.items() if name in there and name not in obstacles]
    _divide_inputs(chosen)
    for matrix, grid in chosen:
        store_blocks(matrix, _blocks(matrix, grid), grid.accuracy_level)
    for found in mixtures:
        up, down = (_blocks(stack, grids[stack.name]) for stack in (found.up, found.down))
        factors = grids[found.down.name].factors
        up = up if factors is None else _divided(up, factors.cpu())
        store_experts(found, up, down, grids[found.up.name].accuracy_level)
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
    return parameter == path or parameter.startswith(f"{path}.")


def _one_form(grids: Grids, found: Experts) -> bool:
    """Whether both stacks lie on grids that one operator reads, and what they read is divided by nothing."""
    up, down = (grids.get(stack.name) for stack in (found.up, found.down))
    return up is not None and down is not None and up.factors is None and _form(up) == _form(down)


def _form(grid: Grid) -> tuple[int, int, bool, int]:
    return grid.bits, grid.group_size, grid.zeros is None, grid.accuracy_level


def _blocks(matrix: Matrix | Stack, grid: Grid) -> Blocks:
    """A matrix on its grid; the experts of a stack one after another."""
    rows = matrix.rows
    if grid.factors is not None:
        inputs = rows.shape[1]
        by_row = grid.factors.cpu().reshape(-1, 1, inputs)  # of a matrix, or of each expert
        rows = (rows.view(len(by_row), -1, inputs) * by_row).view(-1, inputs)
    scales, zeros = (part.cpu().flatten(0, -2) for part in (grid.scales, grid.stored_zeros))
    return Blocks.on_grid(rows, scales, zeros, grid.format.bits, grid.group_size, grid.zeros is None)


def _divided(up: Blocks, factors: Tensor) -> Blocks:
    """The rows of gates and up projections with what the latter give divided. factors: [experts, inner]"""
    scales = up.scales.view(len(factors), 2, factors.shape[1], -1).clone()
    scales[:, 1] /= factors[..., None]
    return dataclasses.replace(up, scales=scales.view_as(up.scales))


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
        required="a matrix that products or lookups read, or experts of a gate, an up and a down projection",
    )

"""GPTQ and AWQ on a model: calibration data pass block by block; dense layers and experts are rounded on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from backends.context import Context
from backends.locate import located
from backends.models import LoadedModel
from backends.oneshot.cautions import cautions
from backends.oneshot.chosen import method_for
from backends.oneshot.engine import Done
from backends.oneshot.matrices import Matrix, matrices
from backends.oneshot.readers import readers_together
from backends.oneshot.run import compress_model
from backends.quantize.grid import dequantize, quantize
from backends.quantize.left_alone import left_alone
from backends.quantize.stored import Grid
from backends.structure import changed
from knowledge.layers import LayerTable
from knowledge.techniques.calibrated import Awq, Gptq
from knowledge.values import Decision, LayerFormat

Rounding = Gptq | Awq


def apply(technique: Rounding, model: LoadedModel, context: Context) -> tuple[LoadedModel, Decision]:
    """Round dense layers and experts by what they read, embeddings and head to nearest, in place.

    Weights stay floats, on the grids that the model carries from now on: its export stores them in groups. Raises
    InputError where the calibration data are too few, or an activation is not finite, naming the layer.
    """
    layers = context.layers
    paths = layers.path[technique.body(layers)].tolist()
    readers = readers_together(matrix for path in paths for matrix in matrices(model.module, path))
    done = compress_model(model, context, paths, method_for(technique, readers))
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}
    grids: dict[str, Grid] = {}
    formats: dict[str, LayerFormat] = {}
    for path, name, grid in (*_body(technique, done, names), *_ends(technique, layers, model.module, names)):
        grids[name], formats[path] = grid, grid.format
    tied = (layers.tied_to != "").nonzero()[0]
    formats |= {str(layers.path[row]): formats[o] for row in tied if (o := str(layers.tied_to[row])) in formats}
    skipped = (*left_alone(technique, layers, formats, {}), *cautions(technique, done))
    decision = Decision(technique=technique.id, formats=dict(sorted(formats.items())), skipped=skipped)
    return dataclasses.replace(changed(model, decision), grids={**model.grids, **grids}), decision


def _body(technique: Rounding, done: Sequence[Done], names: Mapping[int, str]) -> Iterator[tuple[str, str, Grid]]:
    """Path, name of the parameter and grid of every matrix, or stack of experts, that the engine rounded."""
    by_name: dict[str, list[Done]] = {}
    for one in done:
        by_name.setdefault(names[id(one.matrix.place.weight)], []).append(one)
    for name, parts in by_name.items():
        parts.sort(key=lambda one: one.matrix.expert or 0)
        scales = _together(parts, [one.scales for one in parts])
        zeros = None if technique.symmetric else _together(parts, [one.zeros for one in parts])
        factors = _together(parts, [one.factors for one in parts])
        factors = None if factors is None or bool((factors == 1).all()) else factors
        assert scales is not None
        form = technique.bits, technique.group_size, technique.accuracy_level
        yield parts[0].matrix.path, name, Grid(*form, scales, zeros, factors)


def _together(parts: Sequence[Done], tensors: Sequence[Tensor | None]) -> Tensor | None:
    """What belongs to a matrix, or a stack of what belongs to each expert's."""
    given = [tensor for tensor in tensors if tensor is not None]
    if not given or parts[0].matrix.expert is None:
        return tensors[0]
    return torch.stack(given)


def _ends(
    technique: Rounding, layers: LayerTable, module: nn.Module, names: Mapping[int, str]
) -> Iterator[tuple[str, str, Grid]]:
    """The same of embeddings and head, rounded to nearest here."""
    groups = technique.end_groups(layers)
    bits = technique.embedding_bits
    for row in ((groups > 0) & layers.owned).nonzero()[0]:
        path, size = str(layers.path[row]), int(groups[row])
        place = located(module, path)
        matrix = Matrix(path, place)
        codes, scales, zeros = quantize(matrix.read(), bits, size, technique.symmetric)
        matrix.write(dequantize(codes, scales, zeros, size))
        grid = Grid(bits, size, technique.accuracy_level, scales, None if technique.symmetric else zeros)
        yield path, names[id(place.weight)], grid

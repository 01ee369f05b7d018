"""A torch model as a table: exact parameters, and the positions of every weight from one forward pass.

    module                     rows
    Linear, Conv1D, router     linear      outputs × inputs, whichever way the weight lies
    ConvNd                     conv        outputs × inputs/groups × kernel
    FactoredLinear             linear      one row with its rank
    LSTM                       lstm        PATH.weight_ih_l0, PATH.weight_hh_l0, … each with its half of the biases
    MultiheadAttention         linear      PATH.in_proj_weight, and its out_proj
    3-D expert parameters      experts     PATH.gate_up_proj: copies × outputs × inputs
    BatchNorm, LayerNorm, …    norm        running statistics are buffers
    any parameter left over    other

A weight met again (a tied head) gets a row that owns nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from backends.layer_kinds import is_dense
from backends.models import LoadedModel
from backends.surgery import FactoredLinear, dense_weight, is_norm
from backends.watch import Seen, watched
from knowledge.formats import stored_as
from knowledge.layers import LayerTable
from knowledge.roles import assign, completed
from knowledge.values import Decision, Workload

Row = dict[str, Any]
DENSE_ABOVE = 0.98  # a few exact zeros (a padding row, a dead unit) make no sparse matrix


def profile(model: LoadedModel, workload: Workload | None = None) -> LayerTable:
    """Read a model into a table without changing it. Positions are per sample of the workload's shape.

    The pass runs where the weights are; on the meta device nothing is computed. `parameters` of the table equals the
    sum of `numel` over the module's distinct parameters.
    """
    workload = workload or Workload()
    feed = model.example(workload.model_copy(update={"batch": 1}))
    with watched(model, feed) as seen:
        rows = list(_rows(model.module, seen))
    info = dataclasses.replace(model.info, **_sample_shape(model, feed))
    return _as_stored(completed(LayerTable.of(assign(rows, model.info.classes), info)), model.structure)


def _as_stored(layers: LayerTable, decisions: Sequence[Decision]) -> LayerTable:
    """The table with the formats of weights that were rounded. What rounding makes zero is no sparsity."""
    formats = {path: found for decision in decisions for path, found in decision.formats.items()}
    if not formats:
        return layers
    pruned = {path for decision in decisions for path in decision.density}
    dense = np.isin(layers.path, list(formats.keys() - pruned))
    return stored_as(layers.change(dense, density=1.0, pattern="dense"), formats)


def _sample_shape(model: LoadedModel, feed: dict[str, Any]) -> dict[str, Any]:
    """`seq_len` or `image_size` of the sample that was fed."""
    first = feed[model.inputs[0].name]
    if model.inputs[0].dtype == "int64" or first.ndim == 3:
        return {"seq_len": int(first.shape[1])}
    return {"image_size": tuple(first.shape[1:])} if first.ndim == 4 else {}


# -- rows ------------------------------------------------------------------------------------------


def _rows(root: nn.Module, seen: Seen) -> Iterator[Row]:
    """One row per weight, in module order. A parameter met again is tied to the row that had it first."""
    owners: dict[int, str] = {}
    inside_factors: set[str] = set()
    for path, module in root.named_modules():
        if path in inside_factors:
            continue
        if isinstance(module, FactoredLinear):
            inside_factors |= {f"{path}.down", f"{path}.up"}
        for row, weight in _module_rows(path, module, seen):
            if weight is not None:
                row["tied_to"] = owners.setdefault(id(weight), row["path"])
                row["tied_to"] = "" if row["tied_to"] == row["path"] else row["tied_to"]
                row |= _number_facts([weight])
                row["exported"] = seen.reaches([weight])
            yield row


def _module_rows(path: str, module: nn.Module, seen: Seen) -> Iterator[tuple[Row, Tensor | None]]:
    """(row, its weight) for each weight that the module itself holds; None where the facts are in the row already."""
    positions = seen.positions.get(path, 0.0)
    if isinstance(module, FactoredLinear):
        yield _factored_row(path, module, positions, seen), None
    elif is_dense(module):
        outputs, inputs = dense_weight(module).shape
        yield _row(path, "linear", outputs, inputs, [module.bias], positions=positions), module.weight
    elif isinstance(module, _ConvNd):
        yield _conv_row(path, module, positions), module.weight
    elif isinstance(module, nn.Embedding):
        yield _row(path, "embedding", module.weight.shape[0], module.weight.shape[1]), module.weight
    elif isinstance(module, nn.RNNBase):
        yield from _recurrent_rows(path, module, positions)
    elif is_norm(module):
        yield from _norm_rows(path, module, positions, seen)
    else:
        yield from _parameter_rows(path, module, positions)


def _row(path: str, kind: str, outputs: int, inputs: int, biases: Iterable[Tensor | None] = (), **more: Any) -> Row:
    real = [b for b in biases if b is not None]
    row: Row = {"path": path, "kind": kind, "outputs": int(outputs), "inputs": int(inputs), **more}
    if real:
        row |= {"bias": sum(b.numel() for b in real), "bias_bits": 8 * real[0].element_size()}
    return row


def _factored_row(path: str, module: FactoredLinear, positions: float, seen: Seen) -> Row:
    factors = [module.down.weight, module.up.weight]
    row = _row(path, "linear", module.out_features, module.in_features, [module.up.bias], positions=positions)
    return row | {"rank": module.rank, "exported": seen.reaches(factors)} | _number_facts(factors)


def _conv_row(path: str, module: _ConvNd, positions: float) -> Row:
    # weight: [out, in/groups, *kernel], or [in, out/groups, *kernel] when transposed
    kernel = module.weight[0, 0].numel()
    shape = {"kernel": kernel, "groups": module.groups, "positions": positions}
    return _row(path, "conv", module.out_channels, module.in_channels, [module.bias], **shape)


def _recurrent_rows(path: str, module: nn.RNNBase, positions: float) -> Iterator[tuple[Row, Tensor]]:
    """weight_ih: [gates·hidden, in], weight_hh: [gates·hidden, hidden]; a projection is left over as `other`."""
    for name, weight in module.named_parameters(recurse=False):
        inner = f"{path}.{name}" if path else name
        if name.startswith("weight_hr"):
            yield _row(inner, "other", weight.shape[0], weight.shape[1], positions=positions), weight
        elif name.startswith("weight_"):
            bias = getattr(module, name.replace("weight_", "bias_"), None) if module.bias else None
            yield _row(inner, "lstm", weight.shape[0], weight.shape[1], [bias], positions=positions), weight


def _norm_rows(path: str, module: nn.Module, positions: float, seen: Seen) -> Iterator[tuple[Row, Tensor | None]]:
    weight: Tensor | None = getattr(module, "weight", None)
    statistics = [
        b for b in (getattr(module, "running_mean", None), getattr(module, "running_var", None)) if b is not None
    ]
    numbers = sum(b.numel() for b in statistics)
    if weight is None and not numbers:
        return
    width = weight.numel() if weight is not None else statistics[0].numel()
    row = _row(path, "norm", width, 1, [getattr(module, "bias", None)], positions=positions, buffers=numbers)
    if isinstance(module, _BatchNorm):
        row["folds_into"] = seen.folds.get(path, "")
    if weight is None:  # statistics only
        row["copies"] = 0
    yield row, weight


def _parameter_rows(path: str, module: nn.Module, positions: float) -> Iterator[tuple[Row, Tensor]]:
    """Rows for parameters of modules that nobody here knows: experts, routers, attention in one piece, the rest."""
    own = dict(module.named_parameters(recurse=False))
    claimed: set[str] = set()
    for name, weight in own.items():
        inner = f"{path}.{name}" if path else name
        if name in claimed:
            continue
        bias_name = name.removesuffix("weight") + "bias" if name.endswith("weight") else f"{name}_bias"
        bias = own.get(bias_name)
        if weight.dim() == 3 and is_expert_stack(module, path):
            copies, outputs, inputs = weight.shape
            if getattr(module, "is_transposed", False):
                outputs, inputs = inputs, outputs
            yield _row(inner, "experts", outputs, inputs, [bias], positions=positions, copies=copies), weight
        elif weight.dim() == 2 and (name == "in_proj_weight" or _is_router(module, name)):
            where = path if name == "weight" else inner
            yield _row(where, "linear", weight.shape[0], weight.shape[1], [bias], positions=positions), weight
        else:
            outputs, inputs = _flat_shape(weight)
            yield _row(inner, "other", outputs, inputs), weight
            continue
        if bias is not None:
            claimed.add(bias_name)


def is_expert_stack(module: nn.Module, path: str) -> bool:
    """Whether the parameters along three axes of a module hold a matrix for each expert."""
    return "experts" in type(module).__name__.lower() or path.rpartition(".")[2] == "experts"


def _is_router(module: nn.Module, name: str) -> bool:
    return name == "weight" and any(word in type(module).__name__ for word in ("Router", "Gate"))


def _flat_shape(tensor: Tensor) -> tuple[int, int]:
    """(first axis that is longer than one, everything after it)."""
    sizes = list(tensor.shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    outputs = sizes[0] if sizes else 1
    return outputs, tensor.numel() // max(outputs, 1)


def _number_facts(weights: list[Tensor]) -> Row:
    """Width and density of the numbers; weights on the meta device count as dense."""
    total = sum(w.numel() for w in weights)
    facts: Row = {"bits": 8 * weights[0].element_size()}
    if total and not weights[0].is_meta:
        nonzero = sum(int(torch.count_nonzero(w.detach())) for w in weights)
        facts |= {"density": nonzero / total, "pattern": "unstructured" if nonzero < DENSE_ABOVE * total else "dense"}
    return facts

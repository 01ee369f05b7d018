"""Names that last: every stored weight is called by the path of the torch parameter it came from.

The exporter keeps the names of weights it copies and loses those it folds or transposes. Values and the exporter's
scopes tell which parameter each of them was.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from torch import nn

from backends.onnx import graph as graphs

SCOPES = "pkg.torch.onnx.name_scopes"
FOLDED_BIAS = ".weight_bias"  # what the exporter calls the bias that a folded batch norm leaves


def scope(node: ir.Node) -> str:
    """Path of the innermost module that a node was exported from; empty at the top."""
    found = node.metadata_props.get(SCOPES)
    paths = ast.literal_eval(found)[:-1] if found else []  # the last entry is the operation
    return str(paths[-1]) if paths else ""


def name_by_parameters(model: ir.Model, module: nn.Module, prefix: str = "") -> None:
    """Rename initializers to the parameter paths of `module`, and store weights that were copied transposed only once.

    `prefix` is the path at which the exported wrapper holds `module`. What matches no parameter keeps its name.
    """
    graph = model.graph
    parameters = {path: p.detach().cpu().numpy() for path, p in module.named_parameters(remove_duplicate=False)}
    owners = _owners(module)
    taken: dict[str, ir.Value] = {}
    unnamed = []
    for value in list(graph.initializers.values()):
        path = (value.name or "").removeprefix(prefix)
        path = owners.get(path, path)
        path = path.removesuffix(FOLDED_BIAS) + ".bias" if path.endswith(FOLDED_BIAS) else path
        if value.name and ((value.name.startswith(prefix) and "." in path) or path in parameters):
            _rename(graph, value, path)
            taken[path] = value
        else:
            unnamed.append(value)
    for value in unnamed:
        _name_by_value(graph, value, parameters, taken, prefix)


def _owners(module: nn.Module) -> dict[str, str]:
    """For each parameter path the first path of the same tensor: tied weights have one name."""
    first: dict[int, str] = {}
    return {path: first.setdefault(id(p), path) for path, p in module.named_parameters(remove_duplicate=False)}


def _name_by_value(
    graph: ir.Graph, value: ir.Value, parameters: Mapping[str, np.ndarray], taken: dict[str, ir.Value], prefix: str
) -> None:
    array = graphs.constant(value)
    if array is None or array.ndim < 1 or array.size < 2 or array.dtype.kind != "f":
        return
    homes = [scope(node).removeprefix(prefix.rstrip(".")).removeprefix(".") for node, _ in value.uses()]
    matches = [path for path, parameter in parameters.items() if _same(array, parameter)]
    matches.sort(key=lambda path: path.rpartition(".")[0] not in homes)  # stable: the module's own first
    if not matches:
        return
    stored = next((path for path in matches if path in taken), None)
    if stored is not None and array.ndim > 1:  # a tied weight, copied transposed
        _share(graph, value, taken[stored])
    elif free := next((path for path in matches if path not in taken), None):
        _rename(graph, value, free)
        taken[free] = value


def _same(array: np.ndarray, parameter: np.ndarray) -> bool:
    if _equal(array, parameter):
        return True
    return array.ndim in (2, 3) and array.ndim == parameter.ndim and _equal(array, parameter.swapaxes(-1, -2))


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Most weights of one shape part in their first rows, and need not be read whole."""
    return one.shape == other.shape and np.array_equal(one[:1], other[:1]) and np.array_equal(one, other)


def _share(graph: ir.Graph, copy: ir.Value, owner: ir.Value) -> None:
    """Read `owner` where `copy` was read, through a transposition that the runtime folds when it loads the file."""
    users = [node for node, _ in copy.uses()]
    kept, repeated = graphs.stored(owner), graphs.stored(copy)
    source = owner
    if not (kept.shape == repeated.shape and np.array_equal(kept, repeated)):
        axes = [*range(kept.ndim - 2), kept.ndim - 1, kept.ndim - 2]
        first = min(users, key=graph.index)
        source = graphs.add_before(first, "Transpose", [owner], like=copy, perm=axes)[0]
    copy.replace_all_uses_with(source)
    del graph.initializers[graphs.name_of(copy)]


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if value.name == name:
        return
    if name in graph.initializers:  # two copies of one tensor: the first keeps the plain name
        name += ".copy"
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name

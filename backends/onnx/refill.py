"""A file exported before, filled with the weights of a model of the same structure: tracing is most of an export.

    original module ──export──► file          changed module ──refill(file)──► the same file with other numbers

Which parameter an initializer holds is told by its numbers, as they are or transposed. Where a changed parameter is in
the file in another form (batch norms folded into it, gates put in another order) the model is to be exported anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from backends.onnx import graph as graphs
from backends.onnx.export_checks import TOLERANCE, difference
from backends.onnx.session import open_session, session_predictor
from knowledge.files import copy_file
from knowledge.values import Workload

if TYPE_CHECKING:
    from backends.models import LoadedModel


def refill(file: Path, original: nn.Module, changed: LoadedModel, out: Path, workload: Workload) -> bool:
    """Write `out` as `file` with the numbers of `changed`; False, and nothing written, where that cannot be.

    `file` is the export of `original`, a module of the same structure. What is written has been compared with torch.
    """
    before, after = original.state_dict(), changed.module.state_dict()
    if before.keys() != after.keys() or any(before[name].shape != after[name].shape for name in before):
        return False
    moved = {name for name in before if not torch.equal(before[name], after[name].to(before[name].device))}
    model = graphs.load(file)
    filled: set[str] = set()
    for value in model.graph.initializers.values():
        if (name := graphs.name_of(value)) in moved:
            numbers = _as_stored(graphs.stored(value), before[name], after[name])
            if numbers is None:
                return False
            value.const_value = ir.tensor(numbers, name=name)
            filled.add(name)
    if not _all_filled(moved, filled, after):
        return False
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.onnx"
        graphs.save(model, draft)
        if not _agrees(changed, draft, workload):
            return False
        copy_file(draft, out)
    return True


def _agrees(model: LoadedModel, path: Path, workload: Workload) -> bool:
    batch = model.example(workload)
    with torch.no_grad():
        wanted = model.forward({name: torch.from_numpy(array) for name, array in batch.items()}).cpu().numpy()
    return difference(wanted, session_predictor(open_session(path, 1))(batch)) <= TOLERANCE


def _as_stored(held: np.ndarray, before: Tensor, after: Tensor) -> np.ndarray | None:
    """The new numbers the way in which a file holds the old ones; None where it holds something else."""
    for turn in (False, True):
        old, new = (before.t(), after.t()) if turn and before.dim() == 2 else (before, after)
        if held.shape == tuple(old.shape) and np.array_equal(held, old.detach().cpu().numpy()):
            return np.ascontiguousarray(new.detach().cpu().numpy())
    return None


def _all_filled(moved: set[str], filled: set[str], after: Mapping[str, Tensor]) -> bool:
    """Whether the file has every parameter that moved, under one of its names."""
    places = {after[name].data_ptr() for name in filled}
    return all(name in filled or after[name].data_ptr() in places for name in moved)

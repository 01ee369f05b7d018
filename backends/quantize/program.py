"""Which form each layer takes when forms cost bytes and lose quality: an integer program over measured losses.

    least loss   within so many bytes        min Σ loss[layer, form]    Σ bytes[layer, form] ≤ budget
    least bytes  within so much loss         min Σ bytes[layer, form]   Σ loss[layer, form] ≤ tolerance
                                             one form for each layer in both

Losses of different layers add up here, as squares of independent errors do (arXiv:1911.03852, section 3, makes the same
assumption): right while each is small.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from knowledge.values import RunFailed

Costs = Sequence[NDArray[np.float64]]  # of each layer: one number for each of its forms; infinite: not to be taken

SCALE = 1e6  # of the largest number: the solver is content within 1e-6, whatever the numbers mean
TIE = 1e-9  # how much of the limited costs counts: of equal choices the cheaper one
NODES = 100_000  # of the search tree: a bound that gives the same answer on every machine
TOLERANCE = 1e-9  # of a limit: sums of floats


def least_loss(losses: Costs, sizes: Costs, max_bytes: float) -> list[int]:
    """The form of each layer with which the sum of losses is least; of equal ones the smaller.

    Raises RunFailed where nothing fits.

    >>> losses, sizes = [np.array([9.0, 1.0]), np.array([2.0, 1.0])], [np.array([1.0, 2.0])] * 2
    >>> least_loss(losses, sizes, 3), least_loss(losses, sizes, 4)
    ([1, 0], [1, 1])
    """
    smallest = sum(float(size[np.isfinite(loss)].min(initial=np.inf)) for loss, size in zip(losses, sizes, strict=True))
    if smallest > max_bytes * (1 + TOLERANCE):
        raise RunFailed(
            f"the smallest choice of bits takes {smallest:,.0f} bytes, of {max_bytes:,.0f} that may be used"
        )
    return _solve(losses, sizes, max_bytes)


def least_bytes(losses: Costs, sizes: Costs, max_loss: float) -> list[int]:
    """The form of each layer with which the sum of bytes is least. Raises RunFailed where every choice loses more.

    >>> losses, sizes = [np.array([9.0, 1.0]), np.array([2.0, 1.0])], [np.array([1.0, 2.0])] * 2
    >>> least_bytes(losses, sizes, 3), least_bytes(losses, sizes, 20)
    ([1, 0], [0, 0])
    """
    least = sum(float(loss.min(initial=np.inf)) for loss in losses)
    if least > max_loss * (1 + TOLERANCE):
        raise RunFailed(f"the widest bits lose {least:.3g} already, of {max_loss:.3g} that may be lost")
    return _solve(sizes, losses, max_loss)


def _solve(objective: Costs, limited: Costs, limit: float) -> list[int]:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    counts = [len(costs) for costs in objective]
    values, costs = np.concatenate(objective), np.concatenate(limited)
    usable = np.isfinite(values) & np.isfinite(costs)
    values, costs = np.where(usable, values, 0.0), np.where(usable, costs, 0.0)
    layer = np.repeat(np.arange(len(counts)), counts)
    members = csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))))
    rows = vstack([members, csr_array((costs * (SCALE / max(limit, TOLERANCE)))[None])])
    one = np.ones(len(counts))
    with _quiet():
        found = milp(
            _scaled(values) + _scaled(costs) * TIE,
            constraints=LinearConstraint(rows, np.append(one, -np.inf), np.append(one, SCALE * (1 + TOLERANCE))),
            integrality=np.ones(len(values)),
            bounds=Bounds(0, usable.astype(float)),
            options={"node_limit": NODES, "mip_rel_gap": 0.0},
        )
    if found.x is None:
        raise RunFailed(f"no choice of bits was found ({str(found.message).strip()})")
    starts = np.cumsum([0, *counts[:-1]])
    return [int(found.x[start : start + count].argmax()) for start, count in zip(starts, counts, strict=True)]


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * (SCALE / (values.max(initial=0) or 1.0))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the process's standard output free: the solver's C++ writes lines of its own there, options or not."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)

"""Samples to train, calibrate, choose and judge with: four disjoint splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from knowledge.values import InputError

if TYPE_CHECKING:
    from backends.models import Batch, InputSpec
    from knowledge.layers import ModelInfo


class Fed(Protocol):
    """What loading data needs to know of a model."""

    source: str
    info: ModelInfo
    inputs: tuple[InputSpec, ...]


@dataclass(frozen=True, eq=False)
class Split:
    """Arrays by input name, all [n, ...], and labels: [n] classes or scores, [n, time] tokens, or None.

    `places`: where samples stand in the text that they were cut from, so that neighbors can be read on: [n], or None
    where each is a text of its own.

    >>> split = Split({"pixels": np.zeros((5, 1, 8, 8), np.float32)}, np.arange(5))
    >>> [len(batch["labels"]) for batch in split.batches(2)]
    [2, 2, 1]
    """

    inputs: Batch
    labels: NDArray[np.int64] | NDArray[np.float32] | None = None
    places: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()), ()))

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches in order, labels under "labels" where there are any. Padding that a whole batch shares is cut off."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            batch = {name: array[rows] for name, array in self.inputs.items()}
            if self.labels is None or self.labels.ndim == 1:
                batch = trimmed(batch)
            if self.labels is not None:
                batch["labels"] = self.labels[rows]
            yield batch

    def head(self, count: int) -> Split:
        """The first `count` samples."""
        return self.take(np.arange(min(count, len(self))))

    def take(self, rows: NDArray[np.int64]) -> Split:
        """The samples at `rows`, in that order."""
        inputs = {name: array[rows] for name, array in self.inputs.items()}
        labels = None if self.labels is None else self.labels[rows]
        return Split(inputs, labels, None if self.places is None else self.places[rows])

    def fingerprint(self) -> str:
        """Hash of every array: the same samples in the same order, or not."""
        found = hashlib.sha256()
        arrays = dict(self.inputs) if self.labels is None else {**self.inputs, "labels": self.labels}
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            found.update(f"{name} {array.dtype} {array.shape};".encode())
            found.update(array.tobytes())
        return found.hexdigest()


def trimmed(batch: Batch) -> Batch:
    """The batch without the last columns that its attention mask calls padding in every row."""
    mask = batch.get("attention_mask")
    if mask is None or not len(mask):
        return batch
    used = np.flatnonzero(mask.any(0))
    length = int(used[-1]) + 1 if len(used) else 1
    return {n: a[:, :length] if a.shape[:2] == mask.shape else a for n, a in batch.items()}


@dataclass(frozen=True)
class Data:
    """Four splits that share no sample. `search` judges trials, `verification` is touched once, for the final file."""

    train: Split
    calibration: Split
    search: Split
    verification: Split


def load_data(model: Fed, files: Mapping[str, str], seed: int) -> Data:
    """The user's files ("train", "calibration", "eval"), or what the zoo brings along where there are none.

    A single eval file is split by seed into search and verification. Raises InputError naming the file and its fault.
    """
    if unknown := set(files) - {"train", "calibration", "eval"}:
        raise InputError("data", sorted(unknown)[0], "unknown part", "give train, calibration or eval")
    given = {part: name for part, name in files.items() if name}
    if given:
        from backends.datafiles import load_files

        return load_files(model, given, seed)
    if not model.source.startswith("zoo:"):
        raise InputError("data", model.source, "comes without data of its own", "give --eval-data (and --train-data)")
    from backends.zoo.catalog import zoo_data

    return zoo_data(model.source.removeprefix("zoo:"), seed)

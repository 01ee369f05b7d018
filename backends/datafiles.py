"""The user's own data: which files become which splits.

eval ──seed──► search 40 % | verification 60 %     train ──seed──► train | calibration, unless that is given
train alone ──seed──► train 70 % | calibration 10 % | search 10 % | verification 10 %
eval alone  ──seed──► calibration 10 % | search 30 % | verification 60 %, and nothing to train on
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from backends.data import Data, Fed, Split
from backends.readers import read
from knowledge.values import InputError

CALIBRATION_SAMPLES = 256  # at most, when they are taken from training data


def load_files(model: Fed, files: Mapping[str, str], seed: int) -> Data:
    """Read every part and split what has to be split; raises InputError naming the file and what is wrong with it."""
    if "train" not in files and "eval" not in files:
        raise InputError("calibration-data", files["calibration"], "calibration alone cannot judge", "add --eval-data")
    found = {part: read_part(model, part, name) for part, name in files.items()}
    paths = [Path(name).resolve() for name in files.values() if not name.startswith("zoo:")]
    if len(set(paths)) < len(paths):
        names = ", ".join(files.values())
        raise InputError("data", names, "one file serves two parts", "give it once: it is split by seed")
    rng = np.random.default_rng(seed)
    if "eval" not in found:
        shares = [0.7, 0.1, 0.1, 0.1] if "calibration" not in found else [0.8, 0.0, 0.1, 0.1]
        train, calibration, search, verification = divide(found["train"], shares, rng, files["train"])
        return Data(train, found.get("calibration", calibration), search, verification)
    if "calibration" in found:
        search, verification = divide(found["eval"], [0.4, 0.6], rng, files["eval"])
        return Data(found.get("train", nothing(found["eval"])), found["calibration"], search, verification)
    if "train" in found:
        search, verification = divide(found["eval"], [0.4, 0.6], rng, files["eval"])
        share = min(0.2, CALIBRATION_SAMPLES / len(found["train"]))
        train, calibration = divide(found["train"], [1 - share, share], rng, files["train"])
        return Data(train, calibration, search, verification)
    calibration, search, verification = divide(found["eval"], [0.1, 0.3, 0.6], rng, files["eval"])
    return Data(nothing(found["eval"]), calibration, search, verification)


def read_part(model: Fed, part: str, name: str) -> Split:
    """One part's samples, or a zoo model's own ("zoo:NAME"); raises InputError when there are none."""
    if name.startswith("zoo:"):
        from backends.zoo.catalog import zoo_data

        own = zoo_data(name.removeprefix("zoo:"), 0)
        return {"train": own.train, "calibration": own.calibration, "eval": joined(own.search, own.verification)}[part]
    split = read(model, f"{part}-data", name)
    if not len(split):
        raise InputError(f"{part}-data", name, "holds no samples", "give a file with at least one")
    return split


def divide(split: Split, shares: list[float], rng: np.random.Generator, name: str) -> list[Split]:
    """Disjoint random parts of the given shares; pairs (labels that are no whole numbers) stay together.

    Raises InputError when a part with a share would be empty.
    """
    paired = split.labels is not None and split.labels.dtype.kind == "f" and split.labels.ndim == 1
    step = 2 if paired else 1
    order = rng.permutation(len(split) // step)
    ends = np.round(np.cumsum(shares)[:-1] * len(order)).astype(int)
    parts = [np.sort(rows) for rows in np.split(order, ends)]
    if any(share and not len(rows) for share, rows in zip(shares, parts, strict=True)):
        raise InputError("data", name, f"{len(order)} samples are too few to split", "give more, or separate files")
    return [split.take((rows[:, None] * step + np.arange(step)).reshape(-1)) for rows in parts]


def nothing(split: Split) -> Split:
    """No samples, in the form of this split."""
    return split.head(0)


def joined(first: Split, second: Split) -> Split:
    """The samples of one split after those of another."""
    inputs = {name: np.concatenate([array, second.inputs[name]]) for name, array in first.inputs.items()}
    if first.labels is None or second.labels is None:
        return Split(inputs)
    return Split(inputs, np.concatenate([first.labels, second.labels]))

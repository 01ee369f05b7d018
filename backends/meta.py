"""Tables of models that only code can describe, built without weights where possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from backends.factory import load_factory
from backends.huggingface import AUTO, quiet, read_config, wrap
from backends.profile import profile
from knowledge.faults import first_line
from knowledge.layers import LayerTable
from knowledge.values import InputError, Workload


def profile_factory(source: str, task: str | None, arch: str | None, workload: Workload) -> LayerTable:
    """Table of package.module:factory. The factory runs on the meta device; where it cannot, as it is.

    Raises InputError where the factory fails or its result does not say enough.
    """
    try:
        with torch.device("meta"):
            return profile(load_factory(source, task, arch), workload)
    except (InputError, RuntimeError, NotImplementedError):
        # it loads weights, or computes with them: errors that remain are the user's to read
        return profile(load_factory(source, task, arch), workload)


def profile_config(folder: Path, source: str, task: str, arch: str | None, workload: Workload) -> LayerTable:
    """Table of a transformers model from its configuration, on the meta device; raises InputError where unknown."""
    config: Any = read_config(folder)
    try:
        with quiet(), torch.device("meta"):
            module = getattr(transformers, AUTO[task]).from_config(config, dtype=torch.float32)
            return profile(wrap(module.eval(), source, task, arch, None), workload)
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        problem = f"no table for {task} can be made of it: {first_line(error)}"
        remedy = "choose the --task that it was trained for, or load it in a factory of your own"
        raise InputError("model", folder, problem, remedy) from None


def profile_checkpoint(folder: Path, workload: Workload) -> LayerTable:
    """Table of a model that a stage wrote."""
    from backends.structure import load_checkpoint

    return profile(load_checkpoint(folder), workload)

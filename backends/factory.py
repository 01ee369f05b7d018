"""The user's own models: package.module:factory, called without arguments.

The factory returns one of
    a LoadedModel, used as it is;
    a transformers model, fed token ids or images as its configuration says;
    (module, example) with example = {input name: array, batch first}, in the order of the positional arguments;
    a module with an attribute `example_inputs` that holds such an example.

Optional attributes of the module, where the options do not say and shapes and layers do not tell: `task`, `arch`,
`vocab_size`, `max_length`, and `dynamic_axes` = {input name: [axes of any length but the batch]} (axis 1 of token ids).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.layer_kinds import is_pretrained
from backends.models import InputSpec, LoadedModel, one_output
from backends.recognize import family, subfamily
from backends.tasks import import_named
from knowledge.layers import ModelInfo
from knowledge.values import InputError

CONTRACT = "return (module, {input name: example array with the batch first})"


def load_factory(source: str, task: str | None, arch: str | None) -> LoadedModel:
    """Call the user's factory and describe what it returns; raises InputError when it fails or does not say enough."""
    factory = import_named("model", source)
    try:
        made = factory()
    except Exception as error:  # the user's code may raise anything
        raise InputError("model", source, f"failed: {type(error).__name__}: {error}", "mend the factory") from error
    if isinstance(made, LoadedModel):
        return made
    pair = isinstance(made, tuple) and len(made) == 2
    module, example = made if pair else (made, getattr(made, "example_inputs", None))
    if not isinstance(module, nn.Module):
        raise InputError("model", source, f"returned {type(module).__name__}, not a torch module", CONTRACT)
    if example is None and is_pretrained(module):
        return _transformers_model(module, source, task, arch)
    return describe(module.eval(), _arrays(example, source), source, task, arch)


def describe(
    module: nn.Module, example: Mapping[str, np.ndarray], source: str, task: str | None, arch: str | None
) -> LoadedModel:
    """A module with the inputs of its example; raises InputError when it does not run on it or its task is unclear."""
    inputs = tuple(_spec(name, array, getattr(module, "dynamic_axes", {})) for name, array in example.items())
    result = _run(module, inputs, example, source)
    task = task or getattr(module, "task", None) or _task(inputs, result, source)
    kind = family(module, source, arch or getattr(module, "arch", None))
    image = next((spec.shape[1:] for spec in inputs if len(spec.shape) == 4), (0, 0, 0))
    widths = [p.num_embeddings for p in module.modules() if isinstance(p, nn.Embedding)]
    tokens = any(spec.dtype == "int64" for spec in inputs)
    info = ModelInfo(
        name=source.rpartition(":")[2],
        family=kind,
        task=task,
        subfamily=subfamily(module, kind, task),
        architecture=type(module).__name__,
        vocab_size=int(getattr(module, "vocab_size", max(widths, default=0) if tokens else 0)),
        classes=result.shape[-1] if task.endswith("-classification") else 0,
        max_length=int(getattr(module, "max_length", 0)),
        image_size=image if all(isinstance(s, int) for s in image) else (0, 0, 0),  # type: ignore[arg-type]
    )
    return LoadedModel(module, info, inputs, "tensor", source)


def _spec(name: str, array: np.ndarray, dynamic: Mapping[str, Any]) -> InputSpec:
    """One input of the example: the batch is free, and the time axis of token ids."""
    whole = array.dtype.kind in "iu"
    free = set(dynamic.get(name, (1,) if whole and array.ndim == 2 else ()))
    names = {0: "batch", **{axis: "sequence" for axis in free}}
    shape = tuple(names.get(axis, size) for axis, size in enumerate(array.shape))
    return InputSpec(name, "int64" if whole else "float32", shape)


def _arrays(example: Any, source: str) -> dict[str, np.ndarray]:
    if not isinstance(example, Mapping) or not example:
        raise InputError("model", source, "does not say what its inputs look like", CONTRACT)
    arrays = {}
    for name, value in example.items():
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.ndim < 2 or array.dtype.kind not in "fiu":
            raise InputError("model", source, f"its example of {name!r} is no batch of numbers", CONTRACT)
        arrays[str(name)] = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
    return arrays


def _run(module: nn.Module, inputs: tuple[InputSpec, ...], example: Mapping[str, np.ndarray], source: str) -> Tensor:
    names = [spec.name for spec in inputs]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    tensors = [torch.from_numpy(example[name]).to(device) for name in names]
    try:
        with torch.no_grad():
            result = one_output(module, names, "tensor", tensors)
    except Exception as error:  # the user's code may raise anything
        problem = f"does not run on its example: {type(error).__name__}: {error}"
        raise InputError("model", source, problem, CONTRACT) from error
    if not isinstance(result, Tensor) or result.dim() < 2:
        raise InputError("model", source, f"returns {type(result).__name__}", "return one tensor [batch, ...]")
    return result


def _task(inputs: tuple[InputSpec, ...], result: Tensor, source: str) -> str:
    """What the shapes tell: tokens to a vocabulary, tokens, images or sequences to classes."""
    tokens = any(spec.dtype == "int64" for spec in inputs)
    ranks = {len(spec.shape) for spec in inputs}
    if result.dim() == 3 and tokens:
        return "causal-lm"
    if result.dim() == 2:
        return "text-classification" if tokens else "image-classification" if 4 in ranks else "sequence-classification"
    raise InputError("task", source, f"unclear from an output of shape {list(result.shape)}", "add --task")


def _transformers_model(module: nn.Module, source: str, task: str | None, arch: str | None) -> LoadedModel:
    """A transformers model that the factory built, told by its class."""
    from backends.huggingface import task_of, wrap

    config: Any = module.config
    config.architectures = [type(module).__name__]
    return wrap(module.float().eval(), source, task or task_of(config, Path(source)), arch, None)

"""Changed models on disk: safetensors with the weights, JSON with the surgeries that rebuild the structure. No pickles.

    <folder>/model.safetensors     every parameter and buffer, tied weights once; or model.packed.safetensors, smaller
             grids.safetensors     scales and zero points of weights that were rounded, where there are any
             structure.json        {"schema", "source", "task", "info", "decisions"}

Loading takes the source, replays the surgeries without data, and fills in the weights, all of them and no others.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backends.blocks import drop_blocks
from backends.distill.student import facts_of, skeleton
from backends.locate import resize_at
from backends.models import LoadedModel, load
from backends.prune.packed import PACKED, load_packed, save_packed
from backends.quantize.stored import Grid, load_grids, save_grids
from backends.surgery import empty_factors, replace_module
from knowledge.faults import first_line
from knowledge.files import replacing, write_text
from knowledge.layers import ModelInfo
from knowledge.sources import is_factory
from knowledge.values import Decision, InputError

WEIGHTS, GRIDS, STRUCTURE = "model.safetensors", "grids.safetensors", "structure.json"
SCHEMA = "advisor.structure/1"


def changed(model: LoadedModel, decision: Decision) -> LoadedModel:
    """The model with a surgery that has been done written into its structure and its facts."""
    bare = decision.model_copy(update={"curve": (), "skipped": ()})
    info = info_after(model.info, decision)
    return dataclasses.replace(model, info=info, structure=(*model.structure, bare))


def info_after(info: ModelInfo, decision: Decision) -> ModelInfo:
    """The model's facts after a decision."""
    if decision.student is not None and decision.student.width is None:
        facts: dict[str, Any] = facts_of(info, decision.student)
        return dataclasses.replace(info, **facts)
    if decision.dropped_blocks:
        return dataclasses.replace(info, blocks=info.blocks - len(decision.dropped_blocks))
    return info


def same_structure(decisions: Sequence[Decision]) -> bool:
    """Whether a model after these decisions has the layers of its source, with other numbers in them."""
    return not any(d.student or d.dropped_blocks or d.shapes or d.ranks or d.experts or d.image_size for d in decisions)


def rebuild(source: LoadedModel, decisions: Sequence[Decision]) -> LoadedModel:
    """A model with the structure that these surgeries leave, without data; its weights are to be loaded.

    Changes the module of `source`. Raises ValueError where a decision does not fit it.
    """
    model = source
    for decision in decisions:
        try:
            _replay(model, decision)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{decision.technique}: does not fit the source model: {error}") from error
        model = changed(model, decision)
    return model


def _replay(model: LoadedModel, decision: Decision) -> None:
    if decision.student is not None:
        model.module = skeleton(model, decision.student).eval()
    if decision.dropped_blocks:
        drop_blocks(model.module, decision.dropped_blocks)
    for path, shape in decision.shapes.items():
        resize_at(model.module, path, shape)
    for path, rank in decision.ranks.items():
        replace_module(model.module, path, empty_factors(model.module.get_submodule(path), rank))


# -- disk ------------------------------------------------------------------------------------------


def save(model: LoadedModel, folder: Path) -> None:
    """Write a checkpoint; raises RunFailed when the disk is full. An older checkpoint in the folder is replaced."""
    folder = Path(folder)
    _write(folder / WEIGHTS, lambda path: save_file(distinct(model.module), path, metadata={"format": "pt"}))
    if model.grids:
        _write(folder / GRIDS, lambda path: save_grids(model.grids, path))
    else:
        (folder / GRIDS).unlink(missing_ok=True)
    described = {
        "schema": SCHEMA,
        "source": model.source,
        "task": model.info.task,
        "info": dataclasses.asdict(model.info),
        "decisions": [d.model_dump(mode="json", exclude_defaults=True) for d in model.structure],
    }
    write_text(folder / STRUCTURE, json.dumps(described, indent=1) + "\n")


def _write(path: Path, save: Callable[[Path], None]) -> None:
    """Write one file beside and then in place; a full disk is an OSError as elsewhere."""
    with replacing(path) as temporary:
        try:
            save(temporary)
        except SafetensorError as error:
            if f"os error {errno.ENOSPC}" in str(error) or f"os error {errno.EDQUOT}" in str(error):
                raise OSError(errno.ENOSPC, str(error)) from error
            raise


def pack(folder: Path, target: Path) -> None:
    """Write the checkpoint in `folder` again, its weights without their zeros; `load_checkpoint` reads it as well."""
    save_packed(read_weights(folder / WEIGHTS), target / PACKED)
    for name in (STRUCTURE, GRIDS):
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder holds what `save` writes."""
    return (Path(folder) / STRUCTURE).is_file()


def load_checkpoint(folder: Path, allow_code: bool = False) -> LoadedModel:
    """The model that `save` wrote; one whose source is the user's factory runs it, refused unless `allow_code`.

    Raises InputError where the checkpoint is missing, truncated, contradictory or holds NaN.
    """
    folder = Path(folder)
    described = _described(folder / STRUCTURE)
    if is_factory(described["source"]) and not allow_code:
        problem = f"is built by {described['source']}, code that would run"
        raise InputError("checkpoint", folder, problem, "if you trust it: `advisor run PLAN --allow-code`")
    decisions = [Decision.model_validate(d) for d in described["decisions"]]
    family = described["info"]["family"]  # recognized, or told by --arch
    source = load(described["source"], task=described["task"], arch=family, allow_code=allow_code)
    if source.structure:
        raise InputError("checkpoint", folder, "its source is a checkpoint itself", "save it from its first source")
    try:
        model = rebuild(source, decisions)
    except ValueError as error:
        raise InputError("checkpoint", folder, str(error), "its source has changed: run the plan again") from error
    path = next((file for file in (folder / WEIGHTS, folder / PACKED) if file.exists()), folder / WEIGHTS)
    fill(model.module, read_weights(path), path)
    info = described["info"] | {"image_size": tuple(described["info"]["image_size"])}
    grids = _read_grids(folder / GRIDS) if any(d.formats for d in decisions) else {}
    return dataclasses.replace(model, info=ModelInfo(**info), grids=grids)


def _read_grids(path: Path) -> dict[str, Grid]:
    try:
        return load_grids(path)
    except FileNotFoundError:
        raise InputError("checkpoint", path, "no such file", "run the plan again") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("checkpoint", path, f"unreadable: {error}", "delete it and run the plan again") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, packed or not; raises InputError when it is missing, truncated or holds NaN."""
    try:
        tensors = load_packed(path) if path.name == PACKED else load_file(path)
    except FileNotFoundError:
        raise InputError("checkpoint", path, "no such file", "run the plan again") from None
    except (SafetensorError, OSError) as error:
        raise InputError("checkpoint", path, f"unreadable: {error}", "delete it and run the plan again") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError("checkpoint", path, f"{name} holds NaN or infinity", "run the plan again, gentler")
    return tensors


def distinct(module: nn.Module) -> dict[str, Tensor]:
    """Every stored tensor by its first name, contiguous and on the CPU; tied ones once."""
    found: dict[Any, str] = {}
    tensors = {}
    for name, tensor in module.state_dict().items():
        if found.setdefault(_identity(name, tensor), name) == name:
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    return tensors


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy tensors into the module by name, in place so that ties hold; raises InputError unless they match exactly."""
    state = module.state_dict()
    names = {_identity(name, tensor): name for name, tensor in reversed(state.items())}  # the first name wins
    missing, unknown = set(names.values()) - set(tensors), set(tensors) - set(names.values())
    wrong = [n for n in tensors if n in state and state[n].shape != tensors[n].shape]
    problems = {"is missing": missing, "is unknown to the model": unknown, "has a wrong shape": wrong}
    for problem, found in problems.items():
        if found:
            raise InputError("checkpoint", path, f"{min(found)} {problem}", "run the plan again")
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def _identity(name: str, tensor: Tensor) -> Any:
    """Equal for two names of one tensor."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name


def _described(path: Path) -> dict[str, Any]:
    try:
        described: dict[str, Any] = json.loads(path.read_text())
        for decision in described["decisions"]:
            Decision.model_validate(decision)
        wanted = {"source", "task", "info"}
        if described["schema"] != SCHEMA or not wanted <= set(described):
            raise ValueError(f"schema {described['schema']}, {SCHEMA} is known")
        ModelInfo(**described["info"])
    except FileNotFoundError:
        raise InputError("checkpoint", path, "no such file", "give a folder that a run wrote") from None
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        problem = f"not a checkpoint of this version: {first_line(error)}"
        raise InputError("checkpoint", path, problem, "run the plan again") from error
    return described

"""A model's table for planning, from headers, files and packaged tables: no weight is read, no framework imported.

Except where only code can tell: a factory of the user's, a convolutional transformers model, a folder that a stage
wrote. Those are built by `backends`, on the meta device where possible.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from advisor.hf_agree import agreeing
from advisor.hf_facts import facts_of, family_of, task_of
from advisor.hf_files import Shapes, read_config, read_shapes
from advisor.hf_rows import rows_of
from advisor.workloads import at_workload
from knowledge.configs import vocabulary_of
from knowledge.layers import Family, LayerTable, table_from_json
from knowledge.names import nearest
from knowledge.roles import assign, completed
from knowledge.sources import check_framework, is_factory
from knowledge.tasks import check_task, check_told, check_transformers, own_task
from knowledge.typical import TypicalModel, build, typical, typical_models
from knowledge.values import InputError, Workload

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DEFAULT_SEQ_LEN = 128


def profile_source(
    source: str | None,
    *,
    arch: str | None = None,
    task: str | None = None,
    workload: Workload | None = None,
    params: int | None = None,
    knowledge: str = "",
) -> LayerTable:
    """The table of a model that is named, or of the typical one for `arch` when none is.

    `source`: zoo:NAME, a Hugging Face folder or hub id, an .onnx file, package.module:factory, the id of a typical
    model; None or "" for the typical model of `arch`, scaled to `params` parameters. `knowledge`: the user's folder,
    whose models/ are known besides ours. Raises InputError: no such model, broken files, an architecture or a task that
    cannot be told (asking for --arch or --task).
    """
    if arch is not None and arch not in get_args(Family):
        raise InputError("arch", arch, "unknown architecture", nearest(arch, get_args(Family)))
    if task is not None:
        check_task(task)
    workload = workload or Workload()
    if not source:
        return typical(_told(arch), own_task(task), params, workload, knowledge)
    if params is not None:
        raise InputError("params", f"{params:,}", f"{source} has the parameters it has", "leave out MODEL, or --params")
    if source.endswith(".onnx"):
        return _from_onnx(Path(source), task, arch, workload)
    layers = _named(source, arch, own_task(task), workload, knowledge)
    check_told("arch", arch, layers.info.family, source)
    check_told("task", own_task(task), layers.info.task, source)
    return layers


def _named(source: str, arch: str | None, task: str | None, workload: Workload, knowledge: str) -> LayerTable:
    """The table of a model that is no ONNX file. `arch` and `task` are looked at where the model leaves them open."""
    path = Path(source)
    if source.startswith("zoo:"):
        return at_workload(zoo_table(source.removeprefix("zoo:")), workload)
    if path.is_dir():
        return _from_folder(path, source, arch, task, workload)
    if path.is_file():
        raise InputError("model", source, "is a file", "give the folder that holds its config.json, or an .onnx file")
    if is_factory(source):
        from backends.meta import profile_factory

        return profile_factory(source, task, arch, workload)
    if HUB_ID.fullmatch(source) and not source.startswith("."):
        return _from_hub(source, arch, task, workload)
    if (model := _typical_named(source, knowledge)) is not None:
        return build(model, workload)
    raise InputError(
        "model",
        source,
        "no such folder or file",
        "give a folder, zoo:NAME, a hub id (owner/name), package.module:factory or a typical model's id",
    )


def check_real(source: str, knowledge: str = "") -> None:
    """Raise InputError for a model that only estimates can be made for: a typical one by its id, or by no name."""
    remedy = "name a MODEL: a folder, zoo:NAME, a hub id (owner/name), an .onnx file or package.module:factory"
    if not source:
        raise InputError("model", "", "none is named: a typical one stands in for estimates only", remedy)
    elsewhere = source.startswith("zoo:") or source.endswith(".onnx") or is_factory(source) or Path(source).exists()
    if not elsewhere and _typical_named(source, knowledge) is not None:
        problem = "is a typical model, which stands in for estimates only and has no weights"
        raise InputError("model", source, problem, remedy)


def _typical_named(name: str, knowledge: str) -> TypicalModel | None:
    return next((model for model in typical_models(knowledge) if model.id == name), None)


def zoo_table(name: str) -> LayerTable:
    """The packaged table of an embedded example; raises InputError with the nearest names."""
    from backends import zoo

    names = zoo.zoo_names()
    if name not in names:
        raise InputError("model", f"zoo:{name}", "unknown zoo model", nearest(name, names))
    return table_from_json(json.loads((Path(zoo.__file__).parent / "tables" / f"{name}.json").read_text()))


def _told(arch: str | None) -> str:
    if arch is None:
        raise InputError(
            "model", "", "neither a model nor an architecture is named", "give MODEL, or --arch cnn (or another)"
        )
    return arch


def _from_onnx(path: Path, task: str | None, arch: str | None, workload: Workload) -> LayerTable:
    from backends.profile_onnx import profile_onnx, told

    return told(profile_onnx(path, workload=workload), path, task, arch)


def _from_folder(folder: Path, source: str, arch: str | None, task: str | None, workload: Workload) -> LayerTable:
    if (folder / "structure.json").is_file():
        from backends.meta import profile_checkpoint

        return profile_checkpoint(folder, workload)
    check_framework(folder)
    return _from_config(folder, source, arch, task, workload, lambda: read_shapes(folder))


def _from_hub(hub_id: str, arch: str | None, task: str | None, workload: Workload) -> LayerTable:
    from advisor.hub import fetch_config, fetch_shapes

    folder = fetch_config(hub_id)
    return _from_config(folder, hub_id, arch, task, workload, lambda: fetch_shapes(hub_id, folder))


def _from_config(
    folder: Path, source: str, arch: str | None, task: str | None, workload: Workload, shapes: Callable[[], Shapes]
) -> LayerTable:
    config = read_config(folder)
    family = family_of(config, source, arch)
    task = task or task_of(config, source)
    check_transformers(task, vocabulary_of(config), source)
    if family in ("cnn", "rnn"):
        from backends.meta import profile_config

        return profile_config(folder, source, task, arch, workload)
    info = facts_of(config, source, task, family)
    seq_len = _seq_len(info.max_length, workload) if info.vocab_size else 0
    kept, note = agreeing(shapes(), config, source)
    rows = rows_of(kept, config, info, seq_len)
    layers = completed(LayerTable.of(assign(rows), dataclasses.replace(info, seq_len=seq_len, note=note)))
    heads = (layers.role == "head") & (layers.kind == "linear")
    if task.endswith("-classification") and heads.any():
        layers = layers.with_info(classes=int(layers.outputs[heads][-1]))
    return layers


def _seq_len(longest: int, workload: Workload) -> int:
    """Tokens of one sample: those asked for, as far as the model reads."""
    return min(workload.seq_len or DEFAULT_SEQ_LEN, longest or 10**9)

"""What a run starts from: a torch model or an ONNX file, with its data and its task."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from backends.data import Data, load_data
from backends.models import InputSpec, LoadedModel, Predict, load, predictor
from backends.onnx.session import open_session, session_predictor
from backends.onnx.source import described, whole
from backends.profile import profile
from backends.profile_onnx import profile_onnx
from backends.store import digest
from backends.tasks import Task, task_for
from knowledge.layers import LayerTable, ModelInfo
from knowledge.tasks import FIDELITY
from knowledge.values import Workload


@dataclass(frozen=True)
class Source:
    """An uncompressed model. `model` is None for an ONNX file, `path` is None for a torch model."""

    name: str
    info: ModelInfo
    inputs: tuple[InputSpec, ...]
    data: Data
    task: Task
    model: LoadedModel | None = None
    path: Path | None = None
    code: tuple[str, ...] = ()  # hashes of the files of a factory, of a user's metric, and of the model's classes

    @property
    def identity(self) -> dict[str, Any]:
        """What decides results beside the weights: facts, configuration, the user's code, and where it is computed."""
        found: dict[str, Any] = {"name": self.name, "task": self.task.name, "metric": self.task.metric}
        found |= {"info": dataclasses.asdict(self.info), "code": self.code}
        if self.model is not None:
            config: Any = getattr(self.model.module, "config", None)
            found["config"] = config.to_dict() if hasattr(config, "to_dict") else None
            found["device"] = next((p.device.type for p in self.model.module.parameters()), "cpu")
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every weight."""
        if self.path is not None:
            return hashlib.sha256(whole(self.path)).hexdigest()
        assert self.model is not None
        found = hashlib.sha256()
        for name, tensor in sorted(self.model.module.state_dict().items()):
            found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest(found.hexdigest(), [d.model_dump(mode="json") for d in self.model.structure])

    @property
    def predict(self) -> Predict:
        """The uncompressed model's outputs."""
        if self.model is not None:
            return predictor(self.model)
        assert self.path is not None
        return session_predictor(open_session(self.path, torch.get_num_threads()))

    def layers(self, workload: Workload) -> LayerTable:
        if self.model is not None:
            return profile(self.model, workload)
        assert self.path is not None
        return profile_onnx(self.path, workload).with_info(family=self.info.family, task=self.info.task)


def code_digests(names: Sequence[str], model: LoadedModel | None = None) -> tuple[str, ...]:
    """Hash of every file behind `module:function` names and behind the classes that a model is built of.

    Of what these files import, nothing is looked at.
    """
    parts = [] if model is None else [type(part).__module__ for part in model.module.modules()]
    modules = {name.partition(":")[0] for name in names if ":" in name} | set(parts)
    files = {getattr(sys.modules.get(module), "__file__", None) or "" for module in modules}
    return tuple(sorted(hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files if Path(f).is_file()))


def open_source(
    name: str,
    *,
    task: str | None,
    arch: str | None,
    metric: str,
    files: dict[str, str],
    seed: int,
    allow_code: bool = False,
) -> Source:
    """Load a model, its data and its task; raises InputError on anything wrong with them.

    `allow_code`: the model may be, or come from, the user's factory.
    """
    path = Path(name) if name.endswith(".onnx") else None
    if path is not None:
        file = described(path, task, arch)
        judged_by = task_for(FIDELITY if task == FIDELITY else file.info.task, metric)
        return Source(
            name,
            file.info,
            file.inputs,
            load_data(file, files, seed),
            judged_by,
            path=path,
            code=code_digests([metric]),
        )
    model = load(name, task=task, arch=arch, allow_code=allow_code)
    judged_by = task_for(FIDELITY if task == FIDELITY else model.info.task, metric)
    code = code_digests([name, model.source, metric], model)
    return Source(name, model.info, model.inputs, load_data(model, files, seed), judged_by, model=model, code=code)

"""What a run starts from: a torch model or an ONNX file, with its data and its task."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from backends.data import Data, load_data
from backends.models import InputSpec, LoadedModel, Predict, load, predictor
from backends.onnx.session import open_session, session_predictor
from backends.onnx.source import described
from backends.profile import profile
from backends.profile_onnx import profile_onnx
from backends.store import digest
from backends.tasks import Task, task_for
from knowledge.layers import LayerTable, ModelInfo
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

    @property
    def identity(self) -> dict[str, str]:
        """What names the source beside its weights."""
        return {"name": self.name, "task": self.task.name, "metric": self.task.metric}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every weight."""
        if self.path is not None:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()
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
        return profile_onnx(self.path)


def open_source(
    name: str, *, task: str | None, arch: str | None, metric: str, files: dict[str, str], seed: int
) -> Source:
    """Load a model, its data and its task; raises InputError on anything wrong with them."""
    path = Path(name) if name.endswith(".onnx") else None
    if path is not None:
        file = described(path, task)
        judged_by = task_for(file.info.task, metric)
        return Source(name, file.info, file.inputs, load_data(file, files, seed), judged_by, path=path)
    model = load(name, task=task, arch=arch)
    judged_by = task_for(model.info.task, metric)
    return Source(name, model.info, model.inputs, load_data(model, files, seed), judged_by, model=model)

"""Models as the rest of the package sees them: one module, named inputs, one output tensor, a few facts.

source ──load──► LoadedModel ──forward──► logits [batch, classes] or [batch, time, vocab], or vectors [batch, width]
                             ──exportable──► the same as an nn.Module with positional inputs
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knowledge.faults import first_line
from knowledge.layers import ModelInfo
from knowledge.names import nearest
from knowledge.sources import check_framework, is_factory
from knowledge.tasks import check_task, check_told, own_task
from knowledge.values import Decision, InputError, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from backends.quantize.stored import Grids

Batch = dict[str, np.ndarray]
Predict = Callable[[Batch], np.ndarray]
Output = Literal["tensor", "logits", "embedding"]

torch.backends.cuda.matmul.allow_tf32 = False  # float32 is float32 on GPUs too, whatever the environment says
torch.backends.cudnn.allow_tf32 = False
torch.backends.cudnn.deterministic = True  # and convolutions give the same sums again

DEFAULT_SEQ_LEN = 128
FAST_EXPERTS, EXPORTED_EXPERTS = "grouped_mm", "batched_mm"  # the first is many times faster, the second exports
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class InputSpec:
    """One input: strings in `shape` are axes of any length.

    >>> InputSpec("input_ids", "int64", ("batch", "sequence")).sizes(2, 16)
    (2, 16)
    """

    name: str
    dtype: str  # float32 or int64
    shape: tuple[str | int, ...]  # ("batch", 1, 8, 8), ("batch", "sequence")

    def sizes(self, batch: int, seq_len: int) -> tuple[int, ...]:
        """The shape as numbers: the first axis is the batch, any other axis of free length a sequence."""
        free = [batch, *[seq_len] * (len(self.shape) - 1)]
        return tuple(free[axis] if isinstance(size, str) else size for axis, size in enumerate(self.shape))


@dataclass
class LoadedModel:
    """A model with what is needed to feed, judge, change and export it."""

    module: nn.Module  # paths in a LayerTable are relative to it
    info: ModelInfo
    inputs: tuple[InputSpec, ...]
    output: Output  # what `forward` returns of the module's result: itself, .logits, or pooled and normalized vectors
    source: str  # zoo:digits-cnn, a folder, package.module:factory
    tokenizer: PreTrainedTokenizerBase | None = None
    files: Path | None = None  # folder whose tokenizer and configuration go into the artifact
    structure: tuple[Decision, ...] = ()  # surgeries since the source
    grids: Grids = field(default_factory=dict)  # of the weights that were rounded

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensor = next(self.module.parameters(), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The one output tensor, differentiable, on the model's device; what is no input is ignored."""
        tensors = [batch[spec.name].to(self.device) for spec in self.inputs]
        return one_output(self.module, [spec.name for spec in self.inputs], self.output, tensors)

    def example(self, workload: Workload, seed: int = 0) -> Batch:
        """Random valid inputs in the workload's shape: ids below the vocabulary, masks of ones, normal numbers."""
        rng = np.random.default_rng(seed)
        longest = self.info.max_length or DEFAULT_SEQ_LEN
        seq_len = min(workload.seq_len or min(DEFAULT_SEQ_LEN, longest), self.info.max_length or 10**9)
        feed: Batch = {}
        for spec in self.inputs:
            sizes = spec.sizes(workload.batch, seq_len)
            if spec.dtype == "float32":
                feed[spec.name] = rng.standard_normal(sizes).astype(np.float32)
            elif "mask" in spec.name:
                feed[spec.name] = np.ones(sizes, dtype=np.int64)
            else:
                feed[spec.name] = rng.integers(0, max(self.info.vocab_size, 1), sizes, dtype=np.int64)
        return feed

    def exportable(self) -> nn.Module:
        """The model as a module of positional inputs, in `inputs` order; it shares the weights."""
        return Exportable(self.module, [spec.name for spec in self.inputs], self.output).eval()

    def clone(self) -> LoadedModel:
        """The same model with weights of its own; everything else is shared."""
        return dataclasses.replace(self, module=copy.deepcopy(self.module))


class Exportable(nn.Module):
    """A model with positional inputs and one output tensor."""

    def __init__(self, module: nn.Module, names: list[str], output: Output) -> None:
        super().__init__()
        self.module, self.names, self.output = module, names, output

    def forward(self, *tensors: Tensor) -> Tensor:
        with exported_experts(self.module):
            return one_output(self.module, self.names, self.output, list(tensors))


@contextmanager
def exported_experts(module: nn.Module) -> Iterator[None]:
    """Compute experts in the form that exports while open, where they are computed in the fast one."""
    config: Any = getattr(module, "config", None)
    before = getattr(config, "_experts_implementation", None)
    if before != FAST_EXPERTS:
        yield
        return
    config._experts_implementation = EXPORTED_EXPERTS
    try:
        yield
    finally:
        config._experts_implementation = before


def one_output(module: nn.Module, names: list[str], output: Output, tensors: list[Tensor]) -> Tensor:
    """Call the module and pick the one tensor: the user's own by position, transformers' models by name."""
    if output == "tensor":
        result = module(*tensors)
        return cast(Tensor, result[0] if isinstance(result, tuple) else result)
    named = dict(zip(names, tensors, strict=True))
    result = module(**named)
    if output == "logits":
        return cast(Tensor, result.logits)
    return pooled(result.last_hidden_state, named.get("attention_mask"))


def pooled(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over unmasked positions, scaled to length 1. [batch, time, width], mask [batch, time] -> [batch, width]."""
    if mask is None:
        return F.normalize(hidden.mean(1), dim=-1)
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # [batch, time, 1]
    return F.normalize((hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=-1)


def predictor(model: LoadedModel) -> Predict:
    """The model as a function of numpy arrays, in evaluation mode and without gradients."""

    def predict(batch: Batch) -> np.ndarray:
        was_training = model.module.training
        model.module.eval()
        try:
            with torch.no_grad():
                tensors = {spec.name: torch.from_numpy(batch[spec.name]) for spec in model.inputs}
                return model.forward(tensors).float().cpu().numpy()
        finally:
            model.module.train(was_training)

    return predict


def default_device() -> torch.device:
    """CUDA when there is one, else the CPU; the environment's ADVISOR_DEVICE overrides."""
    return default_devices()[0]


def default_devices() -> list[torch.device]:
    """Every CUDA device there is, else the CPU; those of ADVISOR_DEVICE, such as `cuda:1` or `cuda:0,cuda:1`.

    Raises InputError where the environment names a device that this machine has not.
    """
    wanted = os.environ.get("ADVISOR_DEVICE", "")
    if not wanted:
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())] or [torch.device("cpu")]
    try:
        found = [torch.device(one.strip()) for one in wanted.split(",")]
        for device in found:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        problem = first_line(error)
        raise InputError("ADVISOR_DEVICE", wanted, problem, "name devices such as cpu or cuda:0,cuda:1") from None
    return found


def load(source: str, *, task: str | None = None, arch: str | None = None, allow_code: bool = False) -> LoadedModel:
    """Load a model in float32 and evaluation mode, on the GPU when there is one.

    `source`: zoo:NAME, a Hugging Face folder, a folder that a stage wrote, package.module:factory, or a hub id. A
    factory, and a stage's folder whose source is one, run the user's code: refused unless `allow_code`. Raises
    InputError naming what is wrong: no such model, unreadable or NaN weights, an architecture or a task that cannot be
    recognized.
    """
    if arch is not None:
        check_arch(arch)
    if task is not None:
        check_task(task)
    model = _load(str(source), own_task(task), arch, allow_code)
    check_told("arch", arch, model.info.family, source)
    check_told("task", own_task(task), model.info.task, source)
    check_finite(model.module, model.source)
    model.module.to(default_device()).eval()
    return model


def _load(source: str, task: str | None, arch: str | None, allow_code: bool) -> LoadedModel:
    folder = Path(source)
    if source.startswith("zoo:"):
        from backends.zoo.catalog import load_zoo

        return load_zoo(source.removeprefix("zoo:"))
    if folder.is_dir():
        from backends.huggingface import load_folder
        from backends.structure import is_checkpoint, load_checkpoint

        if is_checkpoint(folder):
            return load_checkpoint(folder, allow_code)
        check_framework(folder)
        return load_folder(folder, source, task, arch)
    if folder.is_file():
        raise InputError("model", source, "is a file", "give the folder that holds its config.json, or an .onnx file")
    if is_factory(source):
        from backends.factory import load_factory

        if not allow_code:
            raise InputError("model", source, "would run code of its own", "add --allow-code if you trust it")
        return load_factory(source, task, arch)
    if HUB_ID.fullmatch(source) and not source.startswith("."):
        from backends.huggingface import fetch, load_folder

        return load_folder(fetch(source), source, task, arch)
    remedy = "give a folder, zoo:NAME, a hub id (owner/name) or package.module:factory"
    raise InputError("model", source, "no such folder or file", remedy)


def check_arch(arch: str) -> None:
    """Raise InputError for an unknown architecture family."""
    from backends.recognize import FAMILIES

    if arch not in FAMILIES:
        raise InputError("arch", arch, "unknown architecture", nearest(arch, FAMILIES))


def check_finite(module: nn.Module, source: str) -> None:
    """Raise InputError naming the first weight that holds NaN or infinity."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise InputError("model", source, f"{name} holds {bad} NaN or infinite values", "give sound weights")

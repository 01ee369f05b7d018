"""The forms that a streamed compression writes blocks in.

Dense            model-00001-of-….safetensors           every weight as a float: a model folder
PackQuantized    model-00001-of-….safetensors           see `integers`: one that compressed-tensors loads
WithoutZeros     model-00001-of-….packed.safetensors    see `backends.prune.packed`: no model before it is unpacked
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from backends.oneshot.engine import Done
from backends.oneshot.matrices import Matrix
from backends.oneshot.methods import Method, Outcome
from backends.oneshot.parts import Parts
from backends.oneshot.progress import Layer
from backends.oneshot.shards import DTYPES, Stored, stored, write_shard
from backends.oneshot.statistics import Inputs
from backends.prune.packed import encoded
from backends.quantize.grid import dequantize, encode
from backends.quantize.pack_quantized import AT_ONCE, Scheme
from knowledge.shards import INDEX
from knowledge.values import InputError

PACKED_SUFFIX = ".packed.safetensors"
PACKED_INDEX = f"model{PACKED_SUFFIX}.index.json"
NAMES = {kind: name for name, kind in DTYPES.items()}

Changed = Mapping[str, Sequence[Done]]  # by path
Held = tuple[dict[str, Stored], dict[str, str]]  # tensors and metadata of a file


class Dense:
    """Every weight as a number of its file."""

    name: ClassVar[str] = "dense"
    suffix: ClassVar[str] = ".safetensors"
    index: ClassVar[str] = INDEX

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.files: dict[str, list[str]] = {}  # of a parameter: the tensors that it is in
        for name, (target, _) in parts.targets.items():
            self.files.setdefault(target, []).append(name)

    def begin(self, method: Method, tokens: Tensor) -> None:
        """Look at the model before its first block."""

    def method(self, method: Method, number: int, found: Sequence[Matrix]) -> Method:
        """The method as this form wants it for a block that is in memory."""
        return on_file_numbers(method, self)

    def write(self, path: Path, number: int, changed: Changed) -> tuple[Layer, ...]:
        """Write a block's shard, and tell of its layers. Raises InputError for weights that do not fit, DiskFull."""
        schemes = self.schemes({name: [one.matrix for one in each] for name, each in changed.items()})
        held, metadata = self.held(number, changed, schemes)
        write_shard(path, held, metadata)
        return tuple(self._layer(name, each, held, schemes.get(name)) for name, each in changed.items())

    def schemes(self, found: Mapping[str, Sequence[Matrix]]) -> dict[str, Scheme | str]:
        """How each layer of a block is packed, or why it is not, where this form packs integers."""
        return {}

    def held(self, number: int, changed: Changed, schemes: Mapping[str, Scheme | str]) -> Held:
        """Tensors and metadata of a block's file."""
        return self.parts.written(number, [self.target(path) for path in changed]), {}

    def config(self, config: dict[str, Any], layers: Sequence[Layer]) -> dict[str, Any]:
        """The model's configuration as the folder is to have it."""
        return config

    def target(self, path: str) -> str:
        """Name of the parameter that a layer's matrices are in."""
        return path if path in self.files else f"{path}.weight"

    def kind(self, target: str) -> torch.dtype:
        """A parameter's numbers in the file."""
        return DTYPES[self.parts.shards.places[self.files[target][0]].dtype]

    def _layer(
        self, path: str, changed: Sequence[Done], held: Mapping[str, Stored], scheme: Scheme | str | None
    ) -> Layer:
        names, kind = self.files[self.target(path)], self.kind(self.target(path))
        weights = [one.matrix.read() for one in changed]
        return Layer(
            path=path,
            matrices=len(changed),
            unread=sum(not one.tokens for one in changed),
            fewest_tokens=min(one.tokens for one in changed),
            damping=max(one.damping for one in changed),
            inputs=weights[0].shape[1],
            weights=sum(weight.numel() for weight in weights),
            zeros=sum(weight.numel() - int(weight.to(kind).count_nonzero()) for weight in weights),
            bytes_before=sum(self.parts.shards.at(name).data.nbytes for name in names),
            bytes_after=sum(one.data.nbytes for key, one in held.items() if key.startswith(tuple(names))),
            scheme=scheme if isinstance(scheme, Scheme) else None,
            scaled=any(one.factors is not None and bool((one.factors != 1).any()) for one in changed),
            left=scheme if isinstance(scheme, str) else "",
        )


class WithoutZeros(Dense):
    """Weights without their zeros; they come back bit for bit."""

    name = "without-zeros"
    suffix = PACKED_SUFFIX
    index = PACKED_INDEX

    def held(self, number: int, changed: Changed, schemes: Mapping[str, Scheme | str]) -> Held:
        plain, _ = super().held(number, changed, schemes)
        tensors, metadata = encoded({name: _tensor(one) for name, one in plain.items()})
        return {name: stored(one, NAMES[one.dtype]) for name, one in tensors.items()}, metadata


def _tensor(one: Stored) -> Tensor:
    numbers = np.frombuffer(one.data, np.uint8)
    numbers = numbers if numbers.flags.writeable else numbers.copy()  # of a map of the model's file
    return torch.from_numpy(numbers).view(DTYPES[one.dtype]).view(one.shape)


def on_file_numbers(method: Method, form: Dense) -> Method:
    """The method with scales that are numbers of the model's file, and weights to suit: 16 bits hold fewer than 32.

    So the rounded weights are the same, bit for bit, whether they are stored as floats or as codes and scales.
    """
    rounded = method.rounded
    if rounded is None:
        return method

    def apply(path: str, weight: Tensor, inputs: Inputs) -> Outcome:
        made = method.apply(path, weight, inputs)
        kind = form.kind(form.target(path))
        if made.scales is None or made.zeros is None or torch.finfo(kind).bits > 16:
            return made
        scales, smallest = made.scales.to(kind).float(), torch.finfo(kind).tiny * torch.finfo(kind).eps
        if not bool(torch.isfinite(scales).all()):
            problem = f"a scale does not fit {kind}".replace("torch.", "")
            raise InputError("model", path, problem, "save the model in bfloat16 or float32")
        scales = torch.where(scales == 0, torch.copysign(torch.full_like(scales, smallest), made.scales), scales)
        factors = torch.ones_like(weight[0]) if made.factors is None else made.factors
        at_once = max(AT_ONCE // weight.shape[1], 1)
        for start in range(0, len(weight), at_once):
            rows = slice(start, start + at_once)
            these = scales[rows], made.zeros[rows]
            codes = encode(made.weight[rows] * factors, *these, rounded.bits, rounded.group_size)
            made.weight[rows] = dequantize(codes, *these, rounded.group_size) / factors
        return replace(made, scales=scales)

    return replace(method, apply=apply)

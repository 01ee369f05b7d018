"""A causal language model in parts: built without weights, and filled with those of one part at a time.

Files may hold a part in another form than the model, such as each expert by itself: transformers knows the way in and
back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.initialization import guard_torch_init_functions

from backends.blocks import find_blocks
from backends.huggingface import quiet, read_config
from backends.oneshot.buffers import is_unknown, unknown
from backends.oneshot.shards import DTYPES, Shards, Stored, stored
from knowledge.configs import OF_THESE_WEIGHTS, QUANTIZED, shape_text
from knowledge.faults import first_line
from knowledge.shards import REMEDY
from knowledge.values import InputError

FLOATS = {"F64", "F32", "F16", "BF16"}
OUTSIDE = -1  # number of the part that is run before the first block


class Parts:
    """The model on the meta device, and which of a folder's tensors make up which block.

    `names[number]` are a block's tensors by their names in the files, `names[OUTSIDE]` those of what comes before the
    first block. Raises InputError where the configuration is none of a causal language model in full numbers, a file is
    missing or truncated, or a weight is missing or of another shape.
    """

    def __init__(self, folder: Path, devices: Sequence[torch.device]) -> None:
        self.folder, self.devices, self.config = folder, devices, _config(folder)
        self.shards = Shards(folder)
        with quiet(), torch.device("meta"):
            try:
                build: Any = transformers.AutoModelForCausalLM.from_config
                model = build(self.config, dtype=torch.float32)
            except ValueError as error:
                problem = f"is no causal language model: {first_line(error)}"
                raise InputError("model", folder, problem, "give one that writes text") from None
        self.model: Any = model.eval().requires_grad_(False)
        self.base: nn.Module = model.base_model  # without the head, which nothing reads
        self.path, self.blocks = find_blocks(model, mixed=True)
        self.targets: dict[str, tuple[str, str | None]] = {}  # name in the files -> name in the model, converter
        mapping = get_model_conversion_mapping(model)
        renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in mapping if isinstance(one, WeightConverter)]
        self.converters = {pattern: one for one in converters for pattern in one.source_patterns}
        held = model.state_dict()
        for name in self.shards.places:
            found = rename_source_key(name, renamings, converters, model.base_model_prefix, held)
            if found[0] not in held and name in held:
                found = name, None
            self.targets[name] = found
        # a name is led back by what has led it here
        model._weight_conversions = [one for one in mapping if one.was_used()]
        self.names = self._divided(set(held))
        self._check(held)

    def _divided(self, held: set[str]) -> dict[int, list[str]]:
        names: dict[int, list[str]] = {number: [] for number in (OUTSIDE, *range(len(self.blocks)))}
        before = next(path for path, module in self.model.named_modules() if module is self.base)
        there = {target for target, _ in self.targets.values()}
        pairs = self.model.all_tied_weights_keys.items()
        alone = {one for pair in pairs for one, other in (pair, pair[::-1]) if other not in there}
        for name, (target, _) in self.targets.items():
            if target.startswith(f"{self.path}."):
                names[int(target.removeprefix(f"{self.path}.").split(".", 1)[0])].append(name)
            elif target in held and (target.startswith(before and f"{before}.") or target in alone):
                names[OUTSIDE].append(name)
        return {number: sorted(found, key=dot_natural_key) for number, found in names.items()}

    def _check(self, held: Mapping[str, Tensor]) -> None:
        """Raise InputError naming a weight that is missing, of another shape or quantized, before any time is spent."""
        for names in self.names.values():
            for name in names:
                target, pattern = self.targets[name]
                place = self.shards.places[name]
                if held[target].is_floating_point() and place.dtype not in FLOATS:
                    problem = f"{name} holds {place.dtype} numbers"
                    raise InputError("model", self.folder, problem, "give the model before quantization")
                if pattern is None:
                    self._check_shape(target, place.shape)
        made = [
            p for one in self.model._weight_conversions if isinstance(one, WeightConverter) for p in one.target_patterns
        ]
        there = {target for target, _ in self.targets.values()}
        for first, second in self.model.all_tied_weights_keys.items():
            if first.startswith(f"{self.path}.") and second.startswith(f"{self.path}."):
                problem = f"{second} is the weight of another block too: {first}"
                raise InputError("model", self.folder, problem, "use `advisor run`, which holds all blocks at once")
            there |= {first, second} if there & {first, second} else set()
        needed = [
            f"{path}.{name}" for number in self.names for path, m in self.modules(number) for name in m._parameters
        ]
        for name in needed:
            if name in held and name not in there and not any(pattern in name for pattern in made):
                raise InputError("model", self.folder, f"weight {name} is missing", REMEDY)

    def _check_shape(self, target: str, shape: Sequence[int]) -> None:
        expected = self.model.get_parameter_or_buffer(target).shape
        if tuple(shape) != tuple(expected):
            problem = f"weight {target} has shape {shape_text(shape)}, and config.json makes it {shape_text(expected)}"
            raise InputError("model", self.folder, problem, OF_THESE_WEIGHTS)

    def device(self, number: int) -> torch.device:
        """Where a part is computed: blocks take the devices in turn."""
        return self.devices[0 if number == OUTSIDE else number % len(self.devices)]

    def modules(self, number: int) -> Iterator[tuple[str, nn.Module]]:
        """The modules of a part by their paths in the model."""
        if number != OUTSIDE:
            yield from self.blocks[number].named_modules(prefix=f"{self.path}.{number}")
            return
        of_base = set(self.base.modules())
        for path, module in self.model.named_modules():
            if module in of_base and not path.startswith(f"{self.path}."):
                yield path, module

    def fill(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Put a part's tensors in their places, in float32; `tensors`, by names in the files, ends empty.

        Raises InputError naming a weight that is missing or of another shape.
        """
        waiting: dict[str, Any] = {}
        device = self.device(number)
        for name in self.names[number]:
            target, pattern = self.targets[name]
            if pattern is None:
                self._put(target, tensors.pop(name), device)
                continue
            if target not in waiting:
                waiting[target] = deepcopy(self.converters[pattern])
            waiting[target].add_tensor(target, name, pattern, tensors.pop(name))
        for target, converter in waiting.items():
            made = converter.convert(target, model=self.model, config=self.config)
            for name, value in made.items():
                self._put(name, value[0] if isinstance(value, list) else value, device)
        if number == OUTSIDE:
            self._tie()
        self._make_buffers(number)

    def _put(self, target: str, value: Tensor, device: torch.device) -> None:
        path, _, name = target.rpartition(".")
        owner = self.model.get_submodule(path)
        self._check_shape(target, value.shape)
        value = value.to(device)
        value = value.float() if value.is_floating_point() else value  # there: half as much travels
        value = value if name in owner._buffers else nn.Parameter(value, requires_grad=False)
        value._is_hf_initialized = True  # type: ignore[attr-defined]  # so that the library leaves it as it is
        setattr(owner, name, value)

    def _tie(self) -> None:
        """Of two weights that are one, files hold either."""
        for first, second in self.model.all_tied_weights_keys.items():
            one, other = (self.model.get_parameter(name) for name in (first, second))
            if one.is_meta != other.is_meta:
                self._put(first if one.is_meta else second, other if one.is_meta else one, self.device(OUTSIDE))

    def _make_buffers(self, number: int) -> None:
        """Compute what no file holds, such as the frequencies of rotary embeddings, as the library does on loading."""
        above: dict[str, Any] = {
            path: module
            for path, module in self.model.named_modules()
            if isinstance(module, transformers.PreTrainedModel)
        }
        for path, module in self.modules(number):
            buffers = {name: one for name, one in module._buffers.items() if one is not None}
            names = [name for name in module._non_persistent_buffers_set if name in buffers]
            for name in names:
                module._buffers[name] = unknown(buffers[name], self.device(number))
            if names:
                owner = max((p for p in above if not p or f"{path}.".startswith(f"{p}.")), key=len)
                with torch.no_grad(), guard_torch_init_functions():
                    above[owner]._init_weights(module)
                    if any(is_unknown(module.get_buffer(name)) for name in names):
                        # Falcon-H1 itself computes those of its blocks
                        above[owner]._init_weights(above[owner])
            for name, held in (*module._parameters.items(), *module._buffers.items()):
                if held is not None and (held.is_meta or (name in names and is_unknown(held))):
                    whole = f"{path}.{name}".removeprefix(".")
                    raise InputError("model", self.folder, f"weight {whole} is missing", REMEDY)

    def free(self, number: int) -> None:
        """Let go of a part's weights."""
        for _, module in self.modules(number):
            for name, weight in module._parameters.items():
                module._parameters[name] = None if weight is None else _emptied(weight)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else torch.empty_like(buffer, device="meta")
        if number == OUTSIDE:
            for one in self.model.all_tied_weights_keys:
                path, _, name = one.rpartition(".")
                owner = self.model.get_submodule(path)
                owner._parameters[name] = _emptied(owner._parameters[name])

    def written(self, number: int, changed: Sequence[str]) -> dict[str, Stored]:
        """A block as its file is to hold it: the changed weights as they are now, all others as they were.

        `changed` are names in the model. Raises InputError where a weight does not fit the file's numbers.
        """
        found = {name: self.shards.at(name) for name in self.names[number]}
        plain = {target: name for name, (target, pattern) in self.targets.items() if pattern is None}
        now: dict[str, Tensor] = {plain[one]: self.model.get_parameter(one) for one in changed if one in plain}
        if converted := {one: self.model.get_parameter(one).detach() for one in changed if one not in plain}:
            now |= as_in_files(self.model, converted)
        for name, tensor in now.items():
            if name not in found or found[name].shape != tuple(tensor.shape):
                raise InputError("model", name, "cannot be written the way the folder holds it", "save the model again")
            kind = DTYPES[found[name].dtype]
            if not bool(tensor.abs().max() <= torch.finfo(kind).max):
                problem = f"a changed weight does not fit {kind}".replace("torch.", "")
                raise InputError("model", name, problem, "save the model in bfloat16 or float32")
            found[name] = stored(tensor, found[name].dtype)
        return found


def _emptied(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)


def as_in_files(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names in the model as its files hold them, by their names there."""
    found: dict[str, Tensor] = revert_weight_conversion(model, dict(tensors))
    return found


def _config(folder: Path) -> Any:
    config = read_config(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError("model", folder, "is quantized already", QUANTIZED)
    return config

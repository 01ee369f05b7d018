"""Blocks of rounded weights as compressed-tensors packs them: which layers it holds, and what stands in config.json."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backends.oneshot.blocks import Entry, enter
from backends.oneshot.engine import Done
from backends.oneshot.fold import Folds, find_folds
from backends.oneshot.forms import NAMES, Changed, Dense, Held, WithoutZeros
from backends.oneshot.matrices import Matrix
from backends.oneshot.methods import Method, Rounded
from backends.oneshot.parts import OUTSIDE, Parts, as_in_files
from backends.oneshot.progress import Layer
from backends.oneshot.readers import readers_together
from backends.oneshot.shards import stored
from backends.oneshot.spill import moved
from backends.quantize.pack_quantized import FORMAT, Scheme, common_scheme, packed, quantization_config
from knowledge.values import InputError

Asked = Literal["dense", "packed", "auto"]  # auto: rounded weights packed where that form holds them, all others dense
SCHEME, STEMS = "scheme", "packed"  # in the metadata of a shard: the scheme, and how the names of packed parts begin
PROBE_TOKENS = 16
FEWEST_OUTPUTS = 16  # of a packed layer; readers keep gates of one or a few outputs in floats


class PackQuantized(Dense):
    """Rounded weights in few bits; norms take what AWQ divides by."""

    name = FORMAT

    def __init__(self, parts: Parts, rounded: Rounded, blocks: Sequence[Sequence[Matrix]]) -> None:
        super().__init__(parts)
        self.rounded = rounded
        self.blocks = [by_path(block) for block in blocks]
        self.scheme = self._common_scheme()
        self.probe: Entry | None = None  # a few tokens before the first block
        self.folds = Folds({})  # of the block in memory

    def begin(self, method: Method, tokens: Tensor) -> None:
        if method.folding is None:
            return
        parts = self.parts
        parts.fill(OUTSIDE, {name: parts.shards.read(name) for name in parts.names[OUTSIDE]})
        ids = tokens[:1, :PROBE_TOKENS].to(parts.device(OUTSIDE))
        self.probe = enter(parts.base, lambda: parts.base(input_ids=ids, use_cache=False))
        parts.free(OUTSIDE)

    def method(self, method: Method, number: int, found: Sequence[Matrix]) -> Method:
        if method.folding is not None:
            assert self.probe is not None
            block, device = self.parts.blocks[number], self.parts.device(number)
            calls = [moved(self.probe.calls[number], device)]
            entry = replace(self.probe, hidden=self.probe.hidden.to(device), calls=calls)
            prefix = f"{self.parts.path}.{number}"
            self.folds = find_folds(
                block, prefix, lambda: entry.through(block, 0), found, readers_together(found), self.kind
            )
            method = method.folding(self.folds)
        return super().method(method, number, found)

    # -- weights -----------------------------------------------------------------------------------

    def schemes(self, found: Mapping[str, Sequence[Matrix]]) -> dict[str, Scheme | str]:
        return {path: self._obstacle(path, each[0]) or self._scheme(each[0]) for path, each in found.items()}

    def _scheme(self, matrix: Matrix) -> Scheme | str:
        inputs, size = matrix.read().shape[1], self.rounded.group_size
        if self.scheme is not None and self.scheme.holds(inputs, size):
            return self.scheme
        if 0 < size < inputs and inputs % size:
            return f"has {inputs:,} inputs, of which groups of {size} leave a short one"
        return f"has {inputs:,} inputs, which groups of other layers do not divide"

    def _common_scheme(self) -> Scheme | None:
        weights: Counter[int] = Counter()
        for block in self.blocks:
            for path, each in block.items():
                if not self._obstacle(path, each[0]):
                    weights[each[0].read().shape[1]] += sum(matrix.read().numel() for matrix in each)
                    float_bits = torch.finfo(self.kind(self.target(path))).bits
        form = self.rounded
        return common_scheme(form.bits, form.group_size, form.symmetric, weights, float_bits) if weights else None

    def _obstacle(self, path: str, matrix: Matrix) -> str:
        """Why a layer is not packed, whatever the groups; empty where nothing stands in the way."""
        outputs, inputs = matrix.read().shape
        if outputs < FEWEST_OUTPUTS:
            return f"has {outputs} outputs: packing it would save nothing"
        if matrix.expert is None and not isinstance(matrix.place.owner, nn.Linear):
            return f"is a {type(matrix.place.owner).__name__}, and the format holds Linear layers"
        if matrix.expert is not None and not self.rounded.symmetric:
            return "holds experts with zero points, which readers of the format do not take: set symmetric=true"
        places = {name: self.parts.shards.places[name].shape for name in self.files[self.target(path)]}
        if not all(name.endswith(".weight") and shape[1:] == (inputs,) for name, shape in places.items()):
            return "is no matrix of its own in the file"
        return ""

    def held(self, number: int, changed: Changed, schemes: Mapping[str, Scheme | str]) -> Held:
        plain = [self.target(path) for path in changed if not isinstance(schemes[path], Scheme)]
        held = self.parts.written(number, plain)
        stems: list[str] = []
        for path, each in changed.items():
            if not isinstance(scheme := schemes[path], Scheme):
                continue
            kind = NAMES[self.kind(self.target(path))]
            for name, grid in self._in_files(path, each).items():
                stem = name.removesuffix("weight")
                made = packed(*grid, self.rounded.bits, self.rounded.group_size, scheme)
                del held[name]
                kinds = {part: kind if one.is_floating_point() else NAMES[one.dtype] for part, one in made.items()}
                held |= {f"{stem}{part}": stored(one, kinds[part]) for part, one in made.items()}
                stems.append(stem)
        divided = {p: f for p, (one, *_) in changed.items() if p in self.folds and (f := one.factors) is not None}
        for target, value in self.folds.divided(divided).items():
            name = self.files[target][0]
            if held[name].shape != tuple(value.shape):
                raise InputError("model", name, "cannot be written the way the folder holds it", "use --format dense")
            held[name] = stored(value, NAMES[self.kind(target)])
        if self.scheme is None or not stems:
            return held, {}
        return held, {SCHEME: self.scheme.model_dump_json(), STEMS: json.dumps(stems)}

    def _in_files(self, path: str, changed: Sequence[Done]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Weights on their grids, scales and zero points of a layer, by the names of its weights in the file."""
        target, first = self.target(path), changed[0]
        scales = [one.scales for one in changed if one.scales is not None]
        zeros = [one.zeros for one in changed if one.zeros is not None]
        if first.matrix.expert is None:
            weight = first.matrix.read()
            weight = weight if first.factors is None else weight * first.factors
            return {self.files[target][0]: (weight, scales[0], zeros[0])}
        stacks = first.matrix.place.weight.detach(), torch.stack(scales), torch.stack(zeros)
        weights, *grids = (as_in_files(self.parts.model, {target: stack}) for stack in stacks)
        return {name: (weight, grids[0][name], grids[1][name]) for name, weight in weights.items()}

    # -- config.json -------------------------------------------------------------------------------

    def config(self, config: dict[str, Any], layers: Sequence[Layer]) -> dict[str, Any]:
        assert self.scheme is not None
        taken = {layer.path for layer in layers if layer.scheme is not None}
        known = [path for path, part in self.parts.model.named_modules() if _may_be_taken_for_packed(part)]
        ignore = self._patterns([path for path in known if path not in taken], known)
        return config | {"quantization_config": quantization_config(self.scheme, ignore)}

    def _patterns(self, paths: Sequence[str], known: Sequence[str]) -> list[str]:
        """Names of these modules, one expression for what every block has that has a module of this name."""
        start = re.escape(self.parts.path)

        def by_name(paths: Sequence[str]) -> dict[str, list[str]]:
            found: dict[str, list[str]] = {}
            for path in paths:
                inside = re.fullmatch(rf"{start}\.\d+(\..+)", path)
                found.setdefault(inside[1] if inside else path, []).append(path)
            return found

        every = by_name(known)
        here = by_name(paths).items()
        whole = [rf"re:{start}\.\d+{re.escape(n)}$" for n, each in here if n[0] == "." and len(each) == len(every[n])]
        return [*(p for n, each in here if n[0] != "." or len(each) < len(every[n]) for p in each), *whole]


def by_path(block: Sequence[Matrix]) -> dict[str, list[Matrix]]:
    """The matrices of each layer."""
    found: dict[str, list[Matrix]] = {}
    for matrix in block:
        found.setdefault(matrix.path, []).append(matrix)
    return found


def _may_be_taken_for_packed(module: nn.Module) -> bool:
    """Dense layers, and what readers of the format count among them: routers."""
    weight = module._parameters.get("weight")
    matrix = weight is not None and weight.dim() == 2 and not isinstance(module, nn.Embedding)
    return isinstance(module, nn.Linear) or matrix


def form_for(asked: Asked, parts: Parts, method: Method, blocks: Sequence[Sequence[Matrix]]) -> tuple[Dense, str]:
    """The form to write a model in, and why it is not packed where that was left open.

    `blocks`: the matrices of each. Raises InputError where packing was asked for and the form does not hold the model.
    """
    if asked == "dense" or (method.rounded is None and asked == "auto"):
        return Dense(parts), ""
    if method.rounded is None:
        return WithoutZeros(parts), ""
    form = PackQuantized(parts, method.rounded, blocks)
    if not (why := _obstacle(form)):
        return form, ""
    if asked == "packed":
        raise InputError("format", asked, why, "use --format dense")
    return Dense(parts), why


def _obstacle(form: PackQuantized) -> str:
    """Why the form does not hold the model: none of its layers, or not its experts.

    Those that files have one by one are packed all or none of the model is: readers look for no others beside packed
    layers (transformers 5.23 stumbles).
    """
    parts = form.parts
    found = {path: scheme for block in form.blocks for path, scheme in form.schemes(block).items()}
    packs = {form.target(path) for path, scheme in found.items() if isinstance(scheme, Scheme)}
    why = {form.target(path): f"{path} {scheme}" for path, scheme in found.items()}
    stacks = {name for name, one in parts.blocks.named_parameters(prefix=parts.path) if one.dim() == 3}
    for target, pattern in parts.targets.values():
        if pattern is not None and target in stacks - packs:
            return why.get(target, f"{target} holds experts that are not rounded")
    return "" if packs else next(iter(why.values()), "there is no layer to pack")

"""Weights as matrices [out, in], whichever way their module holds them.

Dense layers, Conv1D, stacks of experts, and convolutions as they multiply unfolded inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.layer_kinds import is_dense
from backends.locate import Located, located
from backends.oneshot.unfold import as_matrix, from_matrix, unfolded, unfolds
from backends.oneshot.whole import Whole
from backends.profile import is_expert_stack
from backends.surgery import FactoredLinear, weight_axes
from knowledge.roles import role_of
from knowledge.values import InputError

OBSERVED = "advisor_observed"  # how experts are computed while they are watched

# (module, its parameter's name, expert or None, what it reads [..., in], of an expert: numbers of the tokens that these
# are) -> what it is to read instead; a convolution reads what it would have read
See = Callable[[nn.Module, str, int | None, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Matrix:
    """One weight of a layer table's row, or one expert's share of it."""

    path: str
    place: Located
    expert: int | None = None

    @property
    def name(self) -> str:
        """As messages call it."""
        return self.path if self.expert is None else f"{self.path}[{self.expert}]"

    def read(self) -> Tensor:
        """The weight as [out, in]; a view, but of a convolution."""
        weight = self.place.weight.detach()
        if unfolds(self.place.owner):
            return as_matrix(weight)
        if self.expert is not None:
            outputs, inputs = self.place.axes.outputs, self.place.axes.inputs
            assert outputs is not None
            assert inputs is not None
            weight = weight[self.expert]
            return weight if outputs < inputs else weight.t()
        return weight if self.place.axes.outputs == 0 else weight.t()

    def write(self, weight: Tensor) -> None:
        """Put numbers [out, in] in place of the old ones; −0, which a product with a mask leaves, becomes 0."""
        if unfolds(self.place.owner):
            held = self.place.weight.detach()
            held.copy_(from_matrix(weight + 0.0, held))
        else:
            self.read().copy_(weight + 0.0)


def matrices(module: nn.Module, path: str) -> list[Matrix]:
    """The matrices behind a path of the layer table, both factors of a factored layer; raises KeyError for none.

    Raises InputError for experts of whom nobody but their own module knows how they are computed.
    """
    if isinstance(found := _module(module, path), FactoredLinear):
        return [Matrix(path, Located(part, "weight", weight_axes(part))) for part in (found.down, found.up)]
    place = located(module, path)
    if unfolds(place.owner):
        return [Matrix(path, place)]
    if isinstance(place.owner, nn.modules.conv._ConvNd):
        raise KeyError(path)
    if place.weight.dim() == 3:
        if not hasattr(place.owner, "has_gate"):  # which those have that transformers can compute in other ways
            problem = "is a stack of experts that its module computes in a way of its own"
            raise InputError("model", path, problem, "use a technique that looks at no activations, such as magnitude")
        return [Matrix(path, place, expert) for expert in range(len(place.weight))]
    if place.weight.dim() != 2 or place.axes.inputs is None:
        raise KeyError(path)
    return [Matrix(path, place)]


def layer_paths(block: nn.Module, prefix: str) -> list[str]:
    """Paths of a block's dense layers and stacks of experts, as the layer table has them. Routers are left out."""
    found = []
    for path, part in block.named_modules(prefix=prefix):
        if is_dense(part):
            weight = part.weight
            assert isinstance(weight, Tensor)
            if role_of(path, "linear", weight.shape[0], weight.shape[1]) != "router":
                found.append(path)
        elif is_expert_stack(part, path):
            found += [f"{path}.{name}" for name, one in part.named_parameters(recurse=False) if one.dim() == 3]
    return found


def _module(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


@contextmanager
def watched(block: nn.Module, config: Any, see: See) -> Iterator[None]:
    """While open, `see` comes before every matrix product of a block's dense layers and experts, and feeds it.

    Convolutions are watched where the block is a whole model that names them.
    """

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (see(module, "weight", None, args[0], None), *args[1:])

    def unfolding(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        see(module, "weight", None, unfolded(module, args[0]), None)

    handles = [part.register_forward_pre_hook(hook) for part in block.modules() if is_dense(part)]
    convolutions = block.convolutions if isinstance(block, Whole) else ()
    handles += [part.register_forward_pre_hook(unfolding) for part in convolutions]
    configs = {id(one): one for one in (config, *(getattr(part, "config", None) for part in block.modules()))}
    before = [(one, how) for one in configs.values() if (how := getattr(one, "_experts_implementation", None))]
    if before:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS[OBSERVED] = _experts(see)
        for one, _ in before:
            one._experts_implementation = OBSERVED
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for one, how in before:
            one._experts_implementation = how
        if before:
            ALL_EXPERTS_FUNCTIONS.pop(OBSERVED)


def _experts(see: See) -> Callable[..., Tensor]:
    """Experts one after the other, each on the tokens that are routed to it; the arithmetic of transformers' own."""

    def forward(self: Any, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        total = torch.zeros_like(hidden)
        for expert in range(self.num_experts):
            token, rank = torch.where(chosen == expert)
            inner = _product(self, "gate_up_proj" if self.has_gate else "up_proj", expert, hidden[token], token)
            inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
            outer = _product(self, "down_proj", expert, inner, token)
            if getattr(self, "has_post_expert_norm", False):
                outer = self.post_expert_norm(outer)
            total.index_add_(0, token, (outer * shares[token, rank, None]).to(total.dtype))
        return total

    def _product(self: Any, name: str, expert: int, x: Tensor, token: Tensor) -> Tensor:
        x = see(self, name, expert, x, token)
        weight = getattr(self, name)[expert]
        bias = getattr(self, f"{name}_bias")[expert] if self.has_bias else None
        return F.linear(x, weight.t() if self.is_transposed else weight, bias)

    return cast(Callable[..., Tensor], forward)

"""A GPU that is none: tensors that claim a device of their own and are computed on the CPU.

What they obey is what code written without a GPU gets wrong. Tensors of two devices do not meet, numbers come to numpy
through `.cpu()` alone, and weights arrive by the module's streams, from whichever thread. Kernels, speed and what
happens at the same time are not simulated: tests marked `gpu` have those.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import backend_registration as backends
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map_only

NAME, COUNT = "simulated", 2
OWN_PROCESS = "ADVISOR_TESTS_SIMULATED"  # torch forgets no device that it was told of
ELSEWHERE = "runs in a process of its own: tests/test_simulated.py"
CPU = torch.device("cpu")
aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}  # numbers of rows may come from the CPU


class Simulated(Tensor):
    """A tensor of a simulated device; `held` are its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> Simulated:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=device
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, *args, **(kwargs or {}))

    @property  # type: ignore[override]
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)
        self.held = value.held if isinstance(value, Simulated) else value

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {self.device} tensor to numpy; use Tensor.cpu()")
        return self.held.detach().numpy()

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def record_stream(self, stream: Stream) -> None:
        assert stream.device == self.device

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_indices(index, self.device))

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = self.detach().clone()
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        found: Tensor = memo[id(self)]
        return found


def _indices(index: Any, device: torch.device) -> Any:
    if isinstance(index, tuple):
        return tuple(_indices(one, device) for one in index)
    return torch.tensor(index, device=device) if isinstance(index, list) else index


def compute(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What an operator makes of simulated tensors, on their device. Raises RuntimeError where devices differ."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if func in (aten._to_copy.default, aten.copy_.default):  # the ways from one device to another
        target = args[0].device if wanted is None else wanted
    else:
        indices = args[1] if func in INDEXING and isinstance(args[0], Simulated) else ()
        free = {id(one) for one in tree_leaves(indices) if isinstance(one, Tensor) and not isinstance(one, Simulated)}
        met = {one.device for one in tensors if isinstance(one, Simulated) or (one.dim() and id(one) not in free)}
        if len(met) > 1:
            raise RuntimeError(f"expected all tensors to be on the same device, found {met} in {func}")
        target = wanted or next(iter(met), CPU)
    kwargs = {key: value for key, value in kwargs.items() if key not in ("pin_memory", "non_blocking")}
    if wanted is not None:
        kwargs["device"] = CPU if wanted.type == NAME else wanted
    args, kwargs = tree_map_only(Simulated, lambda one: one.held, (args, kwargs))
    if func is aten.histc.default:
        args = (args[0].float(), *args[1:])  # of integers on GPUs alone
    found = func(*args, **kwargs)
    if target.type != NAME:
        return found
    place = torch.device(NAME, target.index or 0)
    known = {id(one.held): one for one in tensors if isinstance(one, Simulated)}  # in-place operators return their own
    return tree_map_only(Tensor, lambda one: known[id(one)] if id(one) in known else Simulated(one, place), found)


class Stream:
    """Work is done when it is asked for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def synchronize(self) -> None:
        pass


class Properties:
    total_memory = 8 * 2**30


class Module(backends._DummyBackendModule):
    """What `torch.get_device_module` gives."""

    Stream = Stream

    def is_available(self) -> bool:
        return available

    def device_count(self) -> int:
        return COUNT if available else 0

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        assert device.type == NAME
        yield

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        yield

    def current_stream(self, device: torch.device) -> Stream:
        return Stream(device)

    def get_device_properties(self, device: torch.device) -> type[Properties]:
        return Properties

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(0)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass


class Hook(backends._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return available


available = False  # while a test asks for the devices: other tests of the process see none
_library: list[Any] = []


def register() -> None:
    """Make the device known to torch, for the rest of the process."""
    if not _library:
        backends._setup_privateuseone_for_python_backend(NAME, Module(), Hook(), backends._DummyDeviceGuard())
        _device_constructors()  # are remembered: as they are before any is replaced
        _library.append(torch.library.Library("_", "IMPL"))
        _library[0].fallback(compute, "PrivateUse1")


def devices(patch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices; while `patch` holds, what torch does for GPUs behind its dispatcher is done for these."""
    if OWN_PROCESS not in os.environ:
        pytest.skip(ELSEWHERE)
    register()
    patch.setattr(sys.modules[__name__], "available", True)
    patch.setattr(torch, "empty", _unpinned(torch.empty))
    for name in ("tensor", "arange"):
        patch.setattr(torch, name, _in_two_steps(getattr(torch, name)))
    patch.setattr(nn.Module, "_apply", _apply)
    return [torch.device(NAME, number) for number in range(COUNT)]


def _unpinned(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *shape, pin_memory=False, **more: empty(*shape, **more)


def _in_two_steps(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*given: Any, device: Any = None, **more: Any) -> Tensor:
        return make(*given, **more) if device is None else make(*given, **more).to(device)

    return made


def _apply(self: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`Module.to` by new parameters, as the old ones cannot change their kind; ties hold."""
    new: dict[int, nn.Parameter] = {}
    for part in self.modules():
        for name, one in part._parameters.items():
            if one is not None:
                with torch.no_grad():
                    part._parameters[name] = new.setdefault(id(one), nn.Parameter(change(one), one.requires_grad))
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else change(buffer)
    return self

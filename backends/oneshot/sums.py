"""What matrices read, summed up over batches; matrices that read the same tensors have one sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from backends.oneshot.blocks import counted
from backends.oneshot.matrices import Matrix
from backends.oneshot.methods import Method
from backends.oneshot.statistics import Inputs

Key = tuple[int, str, int | None]  # module, its parameter, expert


def by_key(found: Sequence[Matrix]) -> dict[Key, Matrix]:
    """The matrices by what `watched` calls them."""
    return {(id(m.place.owner), m.place.name, m.expert): m for m in found}


class LastRead:
    """The tensor that was read last, and its sums: q, k and v read one tensor, one after the other."""

    def __init__(self) -> None:
        self._x: Tensor | None = None
        self._version = 0
        self._inputs: Inputs | None = None

    def inputs_of(self, x: Tensor) -> Inputs | None:
        """The sums that hold `x` already; None where another tensor was read last, or this one has changed."""
        same = x is self._x and not x.is_inference()  # of those made for inference nobody knows whether they changed
        return self._inputs if same and x._version == self._version else None

    def keep(self, x: Tensor, inputs: Inputs) -> Inputs:
        """Remember that `inputs` hold x."""
        self._x, self._version, self._inputs = x, 0 if x.is_inference() else x._version, inputs
        return inputs


class Sums:
    """What matrices read over several batches, summed up as `watched` shows it."""

    def __init__(self, found: Sequence[Matrix], method: Method, shared: bool = True) -> None:
        self.method, self.shared = method, shared
        self.todo = by_key(found)
        self.sums: dict[Key, Inputs] = {}
        self.mask: Tensor | None = None  # of the batch that is on its way
        self.last = LastRead()
        self._read: dict[Key, int] = {}  # tensors that each has read
        self._held: dict[int, int] = {}  # tensors that each sum holds
        self._together = True

    @property
    def sound(self) -> bool:
        """Whether those that share a sum have each read all that it holds, once."""
        return self._together and all(self._read[key] == self._held[id(one)] for key, one in self.sums.items())

    def see(self, module: nn.Module, name: str, expert: int | None, x: Tensor, tokens: Tensor | None) -> Tensor:
        key = (id(module), name, expert)
        if key in self.todo:
            self._count(key, x, tokens)
        return x

    def take(self, key: Key) -> Inputs:
        """What this matrix read, which is not asked for again: Hessians take memory."""
        return self.sums.pop(key, None) or Inputs(self.todo[key].read().shape[1])

    def _count(self, key: Key, x: Tensor, tokens: Tensor | None) -> None:
        last = self.last.inputs_of(x) if self.shared else None
        if last is not None and self.sums.setdefault(key, last) is last:
            self._together &= self._read.get(key, 0) == self._held[id(last)] - 1
        else:
            last = self.last.keep(x, self.sums.setdefault(key, Inputs(x.shape[-1])))
            held = self._held.get(id(last), 0)
            self._together &= self._read.get(key, 0) == held
            last.add(counted(x, self.mask, tokens), self.method.products)
            self._held[id(last)] = held + 1
        self._read[key] = self._held[id(last)]


def summed(found: Sequence[Matrix], method: Method, read: Callable[[Sums], None]) -> Sums:
    """What matrices read while `read` runs the model, which it may do again.

    Where a layer reads the same as another in one batch and not in the next, or is called more often, each matrix gets
    a sum of its own.
    """
    sums = Sums(found, method)
    read(sums)
    if not sums.sound:
        sums = Sums(found, method, shared=False)
        read(sums)
    sums.last = LastRead()  # all is read: the last tensor and its sum may go
    return sums

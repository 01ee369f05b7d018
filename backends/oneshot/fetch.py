"""Weights on their way to where they are used: to a GPU those of the next part travel while this one computes.

Several devices take the parts in turn, so that each holds one part at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from backends.oneshot.shards import Shards


def fetched(
    shards: Shards, parts: Sequence[Sequence[str]], devices: Sequence[torch.device]
) -> Iterator[dict[str, Tensor]]:
    """Each part's tensors in turn on its device, in their files' numbers; whoever takes them may empty the mapping.

    On the CPU only the next part's pages are asked for ahead: a second part in memory would raise the peak. So it is
    where a device has no streams, such as Apple's.
    """
    if all(device.type != "cpu" and hasattr(torch.get_device_module(device), "Stream") for device in devices):
        yield from _to_gpus(shards, parts, devices)
        return
    for number, names in enumerate(parts):
        shards.will_need(parts[number + 1] if number + 1 < len(parts) else ())
        yield {name: shards.read(name) for name in names}


def _to_gpus(
    shards: Shards, parts: Sequence[Sequence[str]], devices: Sequence[torch.device]
) -> Iterator[dict[str, Tensor]]:
    gpus = {device: torch.get_device_module(device) for device in devices}
    sides = {device: gpu.Stream(device) for device, gpu in gpus.items()}

    def bring(names: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        side = sides[device]
        with gpus[device].device(device), gpus[device].stream(side):  # a new thread's device is the first one
            found = [shards.read(name, pinned=True).to(device, non_blocking=True) for name in names]
        side.synchronize()  # of this thread alone; until then torch keeps what was pinned
        return dict(zip(names, found, strict=True))

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(bring, parts[0], devices[0]) if parts else None
        for number in range(len(parts)):
            assert ahead is not None
            found = ahead.result()
            following = number + 1
            ahead = pool.submit(bring, parts[following], devices[following]) if following < len(parts) else None
            _used_on(gpus[devices[number]].current_stream(devices[number]), found)
            yield found


def _used_on(stream: Any, tensors: dict[str, Tensor]) -> None:
    """Tell torch that these were made on one stream and are used on another."""
    for tensor in tensors.values():
        tensor.record_stream(stream)

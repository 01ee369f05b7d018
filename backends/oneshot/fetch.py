"""Weights on their way to where they are used: to a GPU those of the next part travel while this one computes.

Several devices take the parts in turn, so that each holds one part at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

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
        with gpus[device].stream(side):
            pinned = [shards.read(name, pinned=True) for name in names]
            found = [tensor.to(device, non_blocking=True) for tensor in pinned]
        side.synchronize()  # of this thread alone; then the pinned copies may go
        return dict(zip(names, found, strict=True))

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(bring, parts[0], devices[0]) if parts else None
        for number in range(len(parts)):
            assert ahead is not None
            found = ahead.result()
            following = number + 1
            ahead = pool.submit(bring, parts[following], devices[following]) if following < len(parts) else None
            used = gpus[devices[number]].current_stream(devices[number])
            for tensor in found.values():  # made on one stream and used on another
                tensor.record_stream(used)
            yield found

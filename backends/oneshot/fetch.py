"""Weights on their way to where they are used: on CUDA those of the next part travel while this one computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from backends.oneshot.shards import Shards


def fetched(shards: Shards, parts: Sequence[Sequence[str]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The tensors of each part in turn, in their files' numbers; whoever takes them may empty the mapping.

    On the CPU only the next part's pages are asked for ahead: a second part in memory would raise the peak.
    """
    if device.type == "cuda":
        yield from _to_gpu(shards, parts, device)
        return
    for number, names in enumerate(parts):
        shards.will_need(parts[number + 1] if number + 1 < len(parts) else ())
        yield {name: shards.read(name) for name in names}


def _to_gpu(shards: Shards, parts: Sequence[Sequence[str]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def bring(names: Sequence[str]) -> dict[str, Tensor]:
        with torch.cuda.stream(side):
            pinned = [shards.read(name, pinned=True) for name in names]
            found = [tensor.to(device, non_blocking=True) for tensor in pinned]
        side.synchronize()  # of this thread alone; then the pinned copies may go
        return dict(zip(names, found, strict=True))

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(bring, parts[0]) if parts else None
        for number in range(len(parts)):
            assert ahead is not None
            found = ahead.result()
            ahead = pool.submit(bring, parts[number + 1]) if number + 1 < len(parts) else None
            for tensor in found.values():  # made on one stream and used on another
                tensor.record_stream(torch.cuda.current_stream(device))
            yield found

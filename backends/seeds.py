"""Random numbers of one seed for a stretch of work, and then those that would have come without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from `seed` on the CPU and on this device while open."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # of other GPUs nothing is asked
        torch.manual_seed(seed)
        yield

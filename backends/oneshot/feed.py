"""How much calibration data pass a block at once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from backends.memory import memory_of
from backends.oneshot.engine import BEFORE_SHARE
from backends.oneshot.methods import Method

SHARE = 0.25  # of the memory that activations may take
COPIES = 4  # of the widest activation that live at the same time, roughly
LEAST = 1 / 16  # of the memory is taken to be free, whatever is held
HESSIANS = 5  # squares of that size, while one is inverted
STACKED = 3  # axes of the weights of all experts


def scores_width(heads: int, tokens: int, length: int) -> int:
    """Numbers for each of `length` places of a sample where attention holds the scores of all pairs of its tokens."""
    return heads * tokens * tokens // length


def layers_width(blocks: nn.Module, experts_per_token: int) -> int:
    """Numbers for each token at the widest layer; experts get a copy of it for each that it is sent to."""
    copies = max(1, experts_per_token)
    weights = [p for p in blocks.parameters() if p.dim() > 1]
    return max((max(p.shape[-2:]) * (copies if p.dim() == STACKED else 1) for p in weights), default=1)


def held_bytes(weights: Iterable[Tensor], hessian_width: int = 0) -> int:
    """Bytes of weights in float32, and of what is at work on a Hessian of so many rows."""
    return 4 * (sum(weight.numel() for weight in weights) + HESSIANS * hessian_width**2)


def windows_at_once(
    samples: int, length: int, widest: int, method: Method, devices: Iterable[torch.device] = (), held: int = 0
) -> int:
    """Samples of so many tokens in a batch: all that fit where layers are `widest` wide, at least one.

    What counts is the machine's memory, and that of each GPU among the devices, without the bytes `held` by all else.
    A method that looks at a share of the batches gets that many.
    """
    memory = memory_of(devices)
    fitting = int(SHARE * max(memory - held, LEAST * memory) // (4 * COPIES * widest * length))
    wanted = -(-samples // BEFORE_SHARE) if method.before else samples
    return max(1, min(fitting, wanted))

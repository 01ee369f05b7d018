"""How much calibration data pass a block at once."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from backends.memory import memory_of
from backends.oneshot.engine import BEFORE_SHARE
from backends.oneshot.methods import Method

SHARE = 0.25  # of the memory that activations may take
COPIES = 4  # of the widest activation that live at the same time, roughly


def scores_width(heads: int, tokens: int, length: int) -> int:
    """Numbers for each of `length` places of a sample where attention holds the scores of all pairs of its tokens."""
    return heads * tokens * tokens // length


def windows_at_once(
    samples: int, length: int, widest: int, method: Method, devices: Iterable[torch.device] = ()
) -> int:
    """Samples of so many tokens in a batch: all that fit where layers are `widest` wide, at least one.

    What counts is the machine's memory, and that of each GPU among the devices. A method that looks at a share of the
    batches gets that many.
    """
    fitting = int(SHARE * memory_of(devices) // (4 * COPIES * widest * length))
    wanted = -(-samples // BEFORE_SHARE) if method.before else samples
    return max(1, min(fitting, wanted))

"""Which tokens perplexity is taken over, and how far back each one may look: windows of a text, and their stride.

    text       t0 t1 t2 t3 t4 t5 t6 t7 t8 t9 …      window 6, stride 2
    window 0    ·  ✓  ✓  ✓  ✓  ✓
    window 1          ·  ·  ·  ·  ✓  ✓             · read, not scored     ✓ scored
    window 2                ·  ·  ·  ·  ✓  ✓

The smaller the stride, the more context each scored token has, and the more windows are read. Where the stride is the
window, windows share no token, and the first of each one is not scored because nothing precedes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.data import Split
from backends.metrics import IGNORED
from knowledge.layers import ModelInfo
from knowledge.values import InputError

TOKENS = {"input_ids", "attention_mask"}


@dataclass(frozen=True)
class Windows:
    """How texts are cut anew: `window` tokens at a time, of which `stride` are scored that were not before.

    >>> Windows(6, 2).starts(10)
    [0, 2, 4]
    """

    window: int
    stride: int

    def starts(self, tokens: int) -> list[int]:
        """Where windows of a text begin; the last one ends with the text, and may be shorter."""
        return list(range(0, max(1, tokens - self.window + self.stride), self.stride))


def asked_windows(window: int | None, stride: int | None, split: Split, info: ModelInfo, metric: str) -> Windows | None:
    """What was asked for, checked; None where nothing was, and the split's samples are scored as they are.

    A window alone is its own stride; a stride alone goes with windows as long as the split's samples. Raises InputError
    for what the model cannot read or the data do not fill.
    """
    if window is None and stride is None:
        return None
    field, value = ("stride", stride) if window is None else ("window", window)
    if metric != "perplexity":
        raise InputError(field, value, f"{metric} is not measured in windows of a text", "leave it out")
    if more := set(split.inputs) - TOKENS:
        raise InputError(field, value, f"{info.name} reads {min(more)} beside its tokens", "leave it out")
    long = split.inputs["input_ids"].shape[1] if window is None else window
    if long < 2:
        raise InputError("window", long, "a token is scored by those before it", "ask for 2 or more")
    if 0 < info.max_length < long:
        raise InputError("window", long, f"{info.name} has {info.max_length} positions", "ask for that many or fewer")
    step = long if stride is None else stride
    if not 1 <= step <= long:
        raise InputError("stride", step, f"a window has {long} tokens", f"ask for 1 to {long}")
    held = max(len(ids) for ids, _ in texts_of(split))
    if held < long:
        problem = f"the longest text of the verification data has {held:,} tokens"
        raise InputError("window", long, problem, "ask for that many or fewer, or give longer samples (.npz)")
    return Windows(long, step)


def texts_of(split: Split) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Tokens and labels [tokens] of every text without padding: samples that follow one another are one text."""
    ids, labels = split.inputs["input_ids"], split.labels
    assert labels is not None
    mask = split.inputs.get("attention_mask")
    kept = np.ones(ids.shape, bool) if mask is None else mask > 0
    places = 2 * np.arange(len(ids)) if split.places is None else split.places
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(places) != 1) + 1)
    return [(ids[rows][kept[rows]], labels[rows][kept[rows]].astype(np.int64)) for rows in runs]


def cut(split: Split, windows: Windows) -> Split:
    """The split's texts in windows [n, window]: labels are IGNORED where a token was scored before, or is padding."""
    found = [_cut(ids, labels, windows) for ids, labels in texts_of(split) if len(ids)]
    read, inside, scored = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    inputs = {"input_ids": read, "attention_mask": inside.astype(np.int64)}
    return Split({name: inputs[name] for name in split.inputs}, scored)


def _cut(ids: NDArray[np.int64], labels: NDArray[np.int64], windows: Windows) -> tuple[NDArray[Any], ...]:
    """One text: tokens, whether they are no padding, and labels, all [n, window]."""
    at = np.array(windows.starts(len(ids)))[:, None] + np.arange(windows.window)
    inside = at < len(ids)
    at = np.minimum(at, len(ids) - 1)
    scored = np.where(inside, labels[at], IGNORED)
    scored[1:, : windows.window - windows.stride] = IGNORED
    return np.where(inside, ids[at], 0), inside, scored


def scored_tokens(split: Split) -> int:
    """How many tokens perplexity is taken over: the first one of a sample has nothing before it."""
    assert split.labels is not None
    return int((split.labels[:, 1:] != IGNORED).sum())

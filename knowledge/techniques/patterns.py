"""Which layers a pattern of path parts names, and which of a few weights an N:M pattern keeps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

Pattern = Literal["unstructured", "2:4", "4:8"]


def _pairs(given: Any) -> Any:
    """A mapping as pairs: a plan writes `{layers.0: 0.3}`, and a technique must be hashable."""
    return tuple(given.items()) if isinstance(given, Mapping) else given


LayerRatio = tuple[Annotated[str, Field(min_length=1)], Annotated[float, Field(ge=0, lt=1)]]
LayerRatios = Annotated[
    tuple[LayerRatio, ...],
    BeforeValidator(_pairs),
    Field(description="ratios of single layers, by whole parts of their paths: {layers.0: 0.3, layers.*.mlp: 0.6}"),
]


def names(pattern: str, path: str) -> bool:
    """Whether a pattern is a run of whole parts of a path; `*` stands for any one part.

    >>> names("layers.1", "model.layers.1.mlp.up_proj"), names("layers.1", "model.layers.10.mlp.up_proj")
    (True, False)
    >>> names("layers.*.mlp", "model.layers.10.mlp.up_proj")
    True
    """
    wanted, parts = pattern.split("."), path.split(".")
    return any(
        all(w in ("*", part) for w, part in zip(wanted, parts[at:], strict=False))
        for at in range(len(parts) - len(wanted) + 1)
    )


def by_layer(ratios: Sequence[LayerRatio], paths: Iterable[str], otherwise: float) -> NDArray[np.float64]:
    """Ratio of each path: that of the first pattern which names it."""
    return np.array([next((r for p, r in ratios if names(p, path)), otherwise) for path in paths], dtype=np.float64)


def kept_of(pattern: Pattern) -> tuple[int, int]:
    """(N, M) of "N:M": of M weights in a row, N stay. (0, 0) for unstructured zeros.

    >>> kept_of("2:4"), kept_of("unstructured")
    ((2, 4), (0, 0))
    """
    kept, _, among = pattern.partition(":")
    return (int(kept), int(among)) if among else (0, 0)


def pattern_strength(pattern: Pattern, ratio: float) -> float:
    """What an N:M pattern costs, as the ratio of unstructured zeros that costs about as much.

    A pattern leaves fewer masks to choose among: log₂ of M choose N, over M, bits a weight. Its ratio counts divided by
    the square root of the share of the free choice that is left; the root is ours, and keeps the order of what Wanda
    publishes for Llama-2-7B: perplexity 6.42 for half the weights anywhere, 7.97 for 4:8, 11.02 for 2:4.

    >>> [round(pattern_strength(p, 0.5), 2) for p in ("unstructured", "4:8", "2:4")]
    [0.5, 0.57, 0.62]
    """
    kept, among = kept_of(pattern)
    if not among:
        return ratio
    share = kept / among
    free = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    bound = math.log2(math.comb(among, kept)) / among
    return (1 - share) * math.sqrt(free / bound)

"""Which layers a pattern of path parts names, and which of a few weights an N:M pattern keeps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

DENSE = "unstructured"
LARGEST_GROUP = 32  # neighbors that an N:M pattern speaks of
SIXTY = 60  # YAML 1.1 reads 2:4 without quotes in base 60, as 124


def _quoted(given: Any) -> Any:
    """The pattern that an integer was before YAML read it; anything else as it is."""
    if isinstance(given, int) and not isinstance(given, bool) and given >= SIXTY:
        return f"{given // SIXTY}:{given % SIXTY}"
    return given


def _possible(pattern: str) -> str:
    if pattern != DENSE:
        kept, _, among = pattern.partition(":")
        numbers = kept.isdecimal() and among.isdecimal()
        if not numbers or not 1 <= int(kept) < int(among) <= LARGEST_GROUP:
            known = f"{DENSE} or N:M with 1 ≤ N < M ≤ {LARGEST_GROUP}, such as 2:4"
            raise PydanticCustomError("pattern", "{given} is no pattern: {known}", {"given": pattern, "known": known})
        return f"{int(kept)}:{int(among)}"
    return pattern


Pattern = Annotated[
    str,
    BeforeValidator(_quoted),
    AfterValidator(_possible),
    Field(description="unstructured, or N:M: of M neighbors in a row N stay, 1 ≤ N < M ≤ 32"),
]


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


def naming_none(ratios: Sequence[LayerRatio], paths: Iterable[str]) -> list[str]:
    """The patterns that name none of these paths.

    >>> naming_none((("layers.0", 0.3), ("layer.1", 0.4)), ["model.layers.0.up", "model.layers.1.up"])
    ['layer.1']
    """
    known = list(paths)
    return [pattern for pattern, _ in ratios if not any(names(pattern, path) for path in known)]


def kept_of(pattern: str) -> tuple[int, int]:
    """(N, M) of "N:M": of M weights in a row, N stay. (0, 0) for unstructured zeros.

    >>> kept_of("2:4"), kept_of("unstructured")
    ((2, 4), (0, 0))
    """
    kept, _, among = pattern.partition(":")
    return (int(kept), int(among)) if among else (0, 0)


def pattern_strength(pattern: str, ratio: float) -> float:
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

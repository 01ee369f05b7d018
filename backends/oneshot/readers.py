"""Which matrices read the same: what goes into their inputs' scale is decided for all of them."""

from __future__ import annotations

from collections.abc import Iterable

from backends.oneshot.matrices import Matrix
from knowledge.roles import role_of

TOGETHER = {
    "attention_q": "attention",
    "attention_k": "attention",
    "attention_v": "attention",
    "ffn_up": "feed-forward",
    "ffn_gate": "feed-forward",
}


def readers_together(found: Iterable[Matrix]) -> dict[str, list[Matrix]]:
    """Path -> the matrices that read what it reads: q, k and v of one attention, up and gate of one feed-forward.

    Experts, factored layers and all others read alone, and are left out.
    """
    groups: dict[tuple[str, str, int], list[Matrix]] = {}
    for matrix in found:
        outputs, inputs = matrix.read().shape
        kind = TOGETHER.get(role_of(matrix.path, "linear", outputs, inputs))
        if kind and matrix.expert is None:
            groups.setdefault((matrix.path.rpartition(".")[0], kind, inputs), []).append(matrix)
    whole = [group for group in groups.values() if 1 < len(group) == len({m.path for m in group})]
    return {matrix.path: group for group in whole for matrix in group}

"""What a model is made of: totals, shares by role, and the layers that cost most."""

from __future__ import annotations

from typing import Any

import numpy as np

from knowledge.layers import LayerTable
from knowledge.values import Value

INSPECT_SCHEMA = "advisor.inspect/1"


class Share(Value):
    """A group of layers and what it takes."""

    name: str
    layers: int
    parameters: int
    macs: int
    stored_bytes: int


class Inspection(Value):
    """A model in numbers. `layers` holds every row of its table."""

    name: str
    family: str
    subfamily: str
    task: str
    parameters: int
    macs: int
    stored_bytes: int
    sparsity: float
    embedding_share: float
    facts: dict[str, Any]
    groups: tuple[Share, ...]
    layers: tuple[dict[str, Any], ...]


def inspect(table: LayerTable) -> Inspection:
    """Totals of a layer table, grouped by kind and role, the largest group first."""
    info = table.info
    pairs = zip(table.kind, table.role, strict=True)
    names = [kind if role in ("body", kind) else f"{kind}, {role}" for kind, role in pairs]
    groups = [_share(name, table, [n == name for n in names]) for name in dict.fromkeys(names)]
    facts = {
        name: getattr(info, name)
        for name in (
            "architecture", "vocab_size", "hidden_size", "ffn_size", "blocks", "heads", "kv_heads", "head_dim",
            "experts", "experts_per_token", "classes", "max_length", "seq_len", "image_size", "typical", "note",
        )
        if getattr(info, name) not in ("", 0, (0, 0, 0), False)
    }  # fmt: skip
    return Inspection(
        name=info.name,
        family=info.family,
        subfamily=info.subfamily,
        task=info.task,
        parameters=table.parameters,
        macs=table.macs,
        stored_bytes=table.stored_bytes,
        sparsity=table.sparsity,
        embedding_share=table.embedding_share,
        facts=facts,
        groups=tuple(sorted(groups, key=lambda g: -g.stored_bytes)),
        layers=tuple(_layers(table)),
    )


def _share(name: str, table: LayerTable, chosen: list[bool]) -> Share:
    where = np.array(chosen, dtype=bool)
    return Share(
        name=name,
        layers=int(where.sum()),
        parameters=int((table.weights * table.owned + table.bias)[where].sum()),
        macs=int(table.row_macs[where].sum()),
        stored_bytes=int(table.row_bytes[where].sum()),
    )


def _layers(table: LayerTable) -> list[dict[str, Any]]:
    rows = table.rows()
    weights, macs, sizes = table.weights.tolist(), table.row_macs.tolist(), table.row_bytes.tolist()
    for row, weight, mac, size in zip(rows, weights, macs, sizes, strict=True):
        row |= {"weights": weight, "macs": mac, "stored_bytes": size}
    return rows


def to_json(inspection: Inspection) -> dict[str, Any]:
    return {"schema": INSPECT_SCHEMA, **inspection.model_dump(mode="json")}

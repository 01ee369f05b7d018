"""Per-layer statistics: each layer before and after, for `run.json` and the report."""

from __future__ import annotations

from typing import Any

from advisor.units import bytes_text
from knowledge.layers import LayerTable

COLUMNS = ("outputs", "inputs", "kernel", "groups", "copies", "rank", "bits", "density", "tied_to")


def layer_rows(before: LayerTable, after: LayerTable) -> list[dict[str, Any]]:
    """One mapping per layer: path, kind, role, and what it was and is; None where a layer was removed or is new."""
    old, new = _facts(before), _facts(after)
    names = {p: (k, r) for t in (after, before) for p, k, r in zip(t.path, t.kind, t.role, strict=True)}
    paths = [*before.path, *(p for p in after.path if p not in old)]
    return [
        {"path": p, "kind": names[p][0], "role": names[p][1], "before": old.get(p), "after": new.get(p)} for p in paths
    ]


def _facts(table: LayerTable) -> dict[str, dict[str, Any]]:
    columns = [table.columns[name].tolist() for name in COLUMNS]
    facts = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*columns, strict=True)]
    for fact, size in zip(facts, table.row_bytes.tolist(), strict=True):
        fact["bytes"] = size
    return dict(zip(table.path.tolist(), facts, strict=True))


def shape_text(fact: dict[str, Any]) -> str:
    """`64×32·9` for a convolution with 9 taps, `(r 12)` for a factored layer."""
    text = f"{fact['outputs']}×{fact['inputs']}"
    if fact["kernel"] > 1:
        text += f"·{fact['kernel']}"
    if fact["groups"] > 1:
        text += f" /{fact['groups']}"
    if fact["copies"] > 1:
        text = f"{fact['copies']}× {text}"
    return f"{text} (r {fact['rank']})" if fact["rank"] else text


def layer_text(row: dict[str, Any]) -> dict[str, Any]:
    """The texts of one layer's row: shape, bits and zeros before and after, and the share of its bytes that is left."""
    before, after = row["before"], row["after"]
    both = before and after
    return {
        "path": row["path"],
        "kind": row["kind"] if row["role"] in ("body", row["kind"]) else f"{row['kind']}, {row['role']}",
        "before": shape_text(before) if before else "—",
        "after": _after_shape(before, after),
        "bits": f"{before['bits']} → {after['bits']}" if both else str((before or after)["bits"]),
        "zeros": f"{100 * (1 - after['density']):.0f} %" if after and after["density"] < 1 else "",
        "left": f"{bytes_text(after['bytes'])} of {bytes_text(before['bytes'])}" if both else "",
        "share": min(100.0, 100 * after["bytes"] / max(before["bytes"], 1e-9)) if both else None,
    }


def _after_shape(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    if after is None:
        return "removed"
    shape = shape_text(after)
    return "same" if before is not None and shape_text(before) == shape else shape

"""The catalogue as rows: for the terminal, for JSON and for the table in the README."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from advisor.readiness import NOT_YET, readiness, runnable
from knowledge.techniques.base import Choices, Range, Technique
from knowledge.techniques.catalog import CATALOG, technique_class

TECHNIQUES_SCHEMA = "advisor.techniques/1"
COLUMNS = ("technique", "family", "what it does to the model", "models", "needs", "searched")


def technique_rows(only: str | None = None) -> list[dict[str, Any]]:
    """Each technique's facts and whether it can run here, or one technique's; raises InputError on an unknown id."""
    chosen = {only: technique_class(only)} if only else CATALOG
    ready = {r.technique: r for r in readiness()}
    return [
        {**technique_facts(cls), "runs": ready[name].runs, "why_not": ready[name].why_not}
        for name, cls in chosen.items()
    ]


def technique_facts(cls: type[Technique]) -> dict[str, Any]:
    """What the class declares, the same on every machine."""
    return {
        "id": cls.id,
        "family": cls.family.value,
        "level": cls.level.value,
        "needs": sorted(need.value for need in cls.needs),
        "architectures": sorted(cls.architectures),
        "lossless": cls.lossless,
        "paper": cls.paper,
        "summary": cls.summary(),
        "description": inspect.getdoc(cls) or "",
        "params": [_parameter(cls, name) for name in cls.model_fields],
    }


def _parameter(cls: type[Technique], name: str) -> dict[str, str]:
    field, space = cls.model_fields[name], cls.space().get(name)
    return {
        "name": name,
        "type": type_text(field.annotation),
        "default": "required" if field.is_required() else "none" if field.default in ("", ()) else str(field.default),
        "meaning": field.description or "",
        "searched": space_text(space),
    }


def type_text(annotation: Any) -> str:
    """A field's type as a user would write its values.

    >>> type_text(float | None), type_text(tuple[int, ...])
    ('float | none', 'list of int')
    """
    if get_origin(annotation) is Annotated:
        return type_text(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        parts = [type_text(a) for a in get_args(annotation) if a is not ...]
        return f"list of {parts[0]}" if ... in get_args(annotation) else f"({', '.join(parts)})"
    if get_origin(annotation) is None:
        return "none" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
    return " | ".join(a if isinstance(a, str) else type_text(a) for a in get_args(annotation))


def space_text(space: Range | Choices | None) -> str:
    """A search space in words.

    >>> space_text(Range(0.2, 0.9, step=0.05)), space_text(Choices("l2", "l1")), space_text(None)
    ('0.2 to 0.9 in steps of 0.05', 'l2, l1', '')
    """
    if isinstance(space, Range):
        steps = f" in steps of {space.step:g}" if space.step else " (logarithmic)" if space.log else ""
        return f"{space.low:g} to {space.high:g}{steps}"
    return ", ".join(map(str, space)) if space else ""


def markdown_table(rows: Sequence[Mapping[str, Any]] | None = None) -> str:
    """The README's table of techniques, with a mark at those that are planned with only."""
    facts = rows if rows is not None else [technique_facts(cls) for cls in CATALOG.values()]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in facts:
        searched = ", ".join(f"`{p['name']}`" for p in row["params"] if p["searched"]) or "—"
        models = "all" if len(row["architectures"]) == 4 else ", ".join(row["architectures"])
        name = f"`{row['id']}`" if row["id"] in runnable() else f"`{row['id']}` \\*"
        cells = (name, row["family"], row["summary"], models, ", ".join(row["needs"]) or "—", searched)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if any(row["id"] not in runnable() for row in facts):
        lines += ["", f"\\* {NOT_YET}: recommended with its estimate, left out of searches."]
    return "\n".join(lines)

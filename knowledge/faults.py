"""What is wrong: the gist of an error, or of an entry of a YAML file: field, value, problem, remedy, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Loc = tuple[str | int, ...]


def first_line(error: BaseException) -> str:
    """What an error says first; its kind where it says nothing.

    >>> first_line(ValueError("\\n no such key\\nin 3 files")), first_line(MemoryError())
    ('no such key', 'MemoryError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Fault(ValueError):
    """Something that cannot be understood: where it is below the part that was checked, and what would help."""

    def __init__(self, loc: Loc, value: object, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.loc, self.value, self.problem, self.remedy = loc, value, problem, remedy

    @property
    def field(self) -> str:
        """`then[0].prefer.technique`"""
        return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in self.loc).removeprefix(".")


def fault_of(model: type[BaseModel], parts: Iterable[type[BaseModel]], error: ValidationError) -> Fault:
    """The first problem of a validation. `parts`: the models that fields of `model` are made of."""
    first = error.errors(include_url=False)[0]
    loc = tuple(first["loc"])
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, Fault):
        return Fault((*loc, *raised.loc), raised.value, raised.problem, raised.remedy)
    value = "" if first["type"] in ("missing", "value_error", "string_too_short") else first["input"]
    return Fault(loc, value, *_in_words(model, parts, first["type"], first["msg"], str(loc[-1]) if loc else ""))


def _in_words(
    model: type[BaseModel], parts: Iterable[type[BaseModel]], kind: str, message: str, name: str
) -> tuple[str, str]:
    """A validation message as (problem, remedy)."""
    if kind == "missing":
        remedy = "say where this comes from; `estimated` where it is a guess" if name == "source" else f"add `{name}:`"
        return "is missing", remedy
    if kind == "string_too_short":
        return "is empty", "say where this comes from" if name == "source" else "write a text"
    if kind == "extra_forbidden":
        known = dict.fromkeys(field.alias or n for part in (model, *parts) for n, field in part.model_fields.items())
        near = difflib.get_close_matches(name, known, n=1)
        return "unknown field", f"did you mean {near[0]}?" if near else f"known: {', '.join(model.model_fields)}"
    problem, _, remedy = message.removeprefix("Value error, ").partition(": ")
    problem = problem[:1].lower() + problem[1:]
    if kind == "string_pattern_mismatch" and name == "id":
        remedy = "use lower-case letters, digits and - _ . :"
    return problem, remedy


def place(path: Path, text: str, loc: Iterable[str | int]) -> str:
    """`file:line` of the deepest part of `loc` that the file holds. Composes it again: only errors pay for lines."""
    import yaml

    node: Any = yaml.compose(text, Loader=yaml.CSafeLoader)
    line = node.start_mark.line if node is not None else 0
    for part in loc:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        elif isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value}
            if part not in pairs:
                break
            line = pairs[part][0].start_mark.line
            node = pairs[part][1]
        else:
            break
    return f"{path}:{line + 1}"

"""Parameters of a plan set from the command line, as `technique.parameter=value`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advisor.lint.findings import Patch
from advisor.lint.fix import patched, up_to_date
from advisor.lint.read import read_draft
from knowledge.values import InputError
from knowledge.yaml_values import parse

REMEDY = "write technique.parameter=value, such as finetune.epochs=6"


def with_settings(
    raw: Mapping[str, Any], settings: Sequence[str], allow_code: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The plan with parameters set, and what was changed; raises InputError where a setting names none of its stages.

    Of a technique that stands twice in the plan, the second stage is `technique#2`.
    """
    names = dict(_names(raw))
    result, changes = dict(raw), []
    for setting in settings:
        target, equals, text = setting.partition("=")
        stage, dot, parameter = target.strip().partition(".")
        if not equals or not dot or not parameter:
            raise InputError("set", setting, "sets nothing", REMEDY)
        if stage not in names:
            near = difflib.get_close_matches(stage, names, n=1) or list(names)
            remedy = f"its stages are {', '.join(near)}" if near else "it has no stages"
            raise InputError("set", setting, f"the plan has no stage {stage}", remedy)
        try:
            value = parse(text.encode())[0].value
        except ValueError:  # no YAML, or bytes that are no text
            raise InputError("set", setting, "the value cannot be read", REMEDY) from None
        at = ("stages", names[stage], "params", parameter)
        result = patched(result, [Patch(action="set", at=at, value=value)])
        changes.append(f"{stage}.{parameter} is now {text.strip()}")
    return up_to_date(raw, result, allow_code), tuple(changes)


def _names(raw: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(name, stage number): the technique, numbered from its second stage on."""
    seen: dict[str, int] = {}
    for number, technique in sorted(read_draft(raw).techniques.items()):
        count = seen[technique.id] = seen.get(technique.id, 0) + 1
        yield technique.id if count == 1 else f"{technique.id}#{count}", number

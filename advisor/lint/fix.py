"""Carrying out what findings propose: on the mapping in the file, until nothing mechanical is left."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from advisor.lint.case import case_of
from advisor.lint.checks import findings_of
from advisor.lint.findings import Finding, Patch, Path, place
from advisor.lint.read import read_draft

ROUNDS = 8  # a change may uncover another: a stage that goes leaves its recovery without a loss


def mended(raw: Mapping[str, Any], allow_code: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The plan with everything mechanical put right, and what was changed, in words."""
    current, changes = copy.deepcopy(dict(raw)), []
    for _ in range(ROUNDS):
        wrong = chosen(findings_of(read_draft(current), allow_code))
        if not wrong:
            break
        changes += [change_text(finding) for finding in wrong]
        current = patched(current, [f.patch for f in wrong if f.patch is not None])
    return up_to_date(raw, current, allow_code), tuple(changes)


def chosen(findings: Iterable[Finding]) -> list[Finding]:
    """The findings whose patches are carried out together: the gravest for each place.

    Nothing is changed in a stage that goes or is replaced, and what is replaced does not go.
    """
    wrong = [(f, f.patch) for f in findings if f.patch is not None]
    replaced = {p.at[1] for _, p in wrong if p.action == "set" and _is_stage(p.at)}
    gone = {p.at[1] for _, p in wrong if p.action == "drop"} - replaced
    kept: dict[tuple[str, ...], Finding] = {}
    for finding, patch in wrong:
        inside = patch.at[1] if len(patch.at) > 2 and patch.at[0] == "stages" else None
        if inside in replaced | gone or (patch.action == "drop" and patch.at[1] in replaced):
            continue
        kind = patch.action if patch.action in ("insert", "order") else "change"
        at = (*patch.at[:-1], patch.value) if patch.action == "rename" else patch.at  # the field that it gives a value
        kept.setdefault((kind, place(at), str(patch.value) if kind == "insert" else ""), finding)
    return list(kept.values())


def _is_stage(at: Path) -> bool:
    """Whether a place is a stage as a whole."""
    return len(at) == 2 and at[0] == "stages"


def patched(raw: Mapping[str, Any], patches: Iterable[Patch]) -> dict[str, Any]:
    """The mapping with patches applied: fields first, then which stages there are, then their order."""
    result = copy.deepcopy(dict(raw))
    patches = list(patches)
    for patch in patches:
        if patch.action in ("set", "unset", "rename"):
            change_field(result, patch)
    if isinstance(result.get("stages"), list):
        result["stages"] = _staged(result["stages"], patches)
    return result


def _staged(stages: list[Any], patches: list[Patch]) -> list[Any]:
    """Stages without those that go, in order, each with what is put behind it."""
    gone = {p.at[1] for p in patches if p.action == "drop"}
    order = next((list(p.value) for p in patches if p.action == "order"), [])
    order += [number for number in range(len(stages)) if number not in order]
    behind = {n: [p.value for p in patches if p.action == "insert" and p.at[1] == n] for n in order}
    return [stage for n in order if n not in gone for stage in (stages[n], *behind[n])]


def change_field(raw: dict[str, Any], patch: Patch) -> None:
    """Set, remove or rename one field; a part that it belongs to is made where there is none."""
    inner: Any = raw
    for part in patch.at[:-1]:
        if isinstance(inner, dict) and not isinstance(inner.get(part), dict | list):
            inner[part] = {}
        inner = inner[part]
    last = patch.at[-1]
    if patch.action == "set":
        inner[last] = copy.deepcopy(patch.value)
    elif patch.action == "unset":
        inner.pop(last, None)
    elif last in inner:
        renamed = {patch.value if name == last else name: value for name, value in inner.items()}
        inner.clear()
        inner.update(renamed)


def change_text(finding: Finding) -> str:
    """What a finding's patch does, in a line."""
    patch = finding.patch
    assert patch is not None
    at, value = place(patch.at), patch.value
    if patch.action == "order":
        return f"the stages were put in order ({finding.observed})"
    if patch.action == "rename":
        return f"{at} is now called {value}"
    if patch.action == "insert":
        return f"{value['technique']} was put in ({finding.observed})"
    if patch.action == "drop":
        return f"{value} was left out ({finding.observed})"
    if patch.action == "unset":
        return f"{at} was left out ({finding.observed})"
    shown = value["technique"] if isinstance(value, dict) else str(value).lower() if isinstance(value, bool) else value
    return f"{at} is now {shown} ({finding.observed})"


def up_to_date(before: Mapping[str, Any], after: dict[str, Any], allow_code: bool) -> dict[str, Any]:
    """The plan with an estimate of its stages as they now are, and without reasons for what they were."""
    if before.get("stages") == after.get("stages"):
        return after
    result = {name: value for name, value in after.items() if name not in ("estimate", "reasons")}
    case, _ = case_of(read_draft(after), allow_code)
    if "estimate" in after and case is not None:
        result["estimate"] = case.predictor.estimate(case.outlook).model_dump(mode="json")
    return result

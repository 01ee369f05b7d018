"""A plan file read leniently: what cannot be understood becomes a finding, and the rest is looked at all the same."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from advisor.lint.findings import Finding, Patch, Path, from_error, place
from advisor.plans import fields_at
from knowledge.techniques.base import Range, Technique
from knowledge.techniques.catalog import parameter_problem, technique_class
from knowledge.values import InputError, Plan, Stage

# stands in for a required field that the file lacks or that makes no sense
INSTEAD: Mapping[str, Any] = {
    "schema": "advisor.plan/1",
    "model": "",
    "task": "",
    "target": "",
    "workload": {},
    "budget": {"max_drop": {"amount": 3, "unit": "pp"}},
    "stages": [],
}


@dataclass(frozen=True)
class Draft:
    """A plan as far as it can be understood. `techniques`: by stage number, those that could be built."""

    raw: Mapping[str, Any]
    plan: Plan  # what is missing or wrong has a stand-in; no stages
    techniques: Mapping[int, Technique]
    findings: tuple[Finding, ...]  # what could not be understood

    @property
    def stages(self) -> list[Any]:
        """The stages as they are written."""
        found = self.raw.get("stages")
        return list(found) if isinstance(found, list) else []


def read_draft(raw: Mapping[str, Any]) -> Draft:
    """Everything that the file says, and a finding for each field that says nothing."""
    found: list[Finding] = []
    plan = _plan({**raw, "stages": []}, found)
    techniques: dict[int, Technique] = {}
    stages = raw.get("stages")
    if "stages" not in raw or not isinstance(stages, list):
        problem = "is not a list" if "stages" in raw else "is missing"
        found.append(from_error(InputError("stages", "", problem, "write `- technique: …` per stage"), "stages"))
    else:
        for number, stage in enumerate(stages):
            technique = _stage(stage, ("stages", number), found)
            if technique is not None:
                techniques[number] = technique
    return Draft(raw, plan, techniques, tuple(f.model_copy(update={"id": "unreadable"}) for f in found))


# -- the plan's own fields -------------------------------------------------------------------------


def _plan(data: dict[str, Any], found: list[Finding]) -> Plan:
    """The plan's fields, its stages apart; problems are added to `found`."""
    data = copy.deepcopy(data)
    for attempt in range(3):  # without the wrong fields, then without what they belonged to
        try:
            return Plan.model_validate(data)
        except ValidationError as error:
            for problem in error.errors():
                if attempt == 0:
                    found.append(_field_finding(problem))
                _replace(data, problem["loc"], whole=attempt > 0)
    return Plan.model_validate(INSTEAD)


def _field_finding(problem: Any) -> Finding:
    at: Path = tuple(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _unknown_field(at, problem["input"], fields_at(at[:-1]))
    value = "" if problem["type"] == "missing" else problem["input"]
    text = "is missing" if problem["type"] == "missing" else str(problem["msg"]).lower()
    patch = None
    if at == ("schema",):
        patch = Patch(action="set", at=at, value=INSTEAD["schema"])
    return from_error(
        InputError("", value, text, "see the fields of a plan that `advisor search` wrote"), place(at), patch=patch
    )


def _unknown_field(at: Path, value: Any, known: list[str]) -> Finding:
    name = str(at[-1])
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        patch, remedy = Patch(action="rename", at=at, value=near[0]), f"call it {near[0]}"
    else:
        patch, remedy = Patch(action="unset", at=at), f"leave it out; known fields: {', '.join(known)}"
    return from_error(InputError("", value, "unknown field", remedy), place(at), patch=patch)


def _replace(data: dict[str, Any], at: tuple[Any, ...], whole: bool) -> None:
    """Take a wrong field out; a required one, or the part that it belongs to, gets its stand-in."""
    top = at[0]
    inner: Any = data
    for part in at[:-1]:
        inner = inner.get(part) if isinstance(inner, dict) else None
    if not whole and len(at) > 1 and isinstance(inner, dict) and at[-1] in inner:
        del inner[at[-1]]
    elif top in INSTEAD:
        data[top] = copy.deepcopy(INSTEAD[top])
    else:
        data.pop(top, None)


# -- stages ----------------------------------------------------------------------------------------


def _stage(raw: Any, at: Path, found: list[Finding]) -> Technique | None:
    """The technique of one stage, with the parameters that make sense; None where there is no telling which it is."""
    if not isinstance(raw, dict) or not isinstance(raw.get("technique"), str):
        error = InputError("", "", "names no technique", "write `technique: NAME` and `params: {…}`")
        found.append(from_error(error, place(at)))
        return None
    for name in raw:
        if name not in Stage.model_fields:
            found.append(_unknown_field((*at, name), raw[name], list(Stage.model_fields)))
    try:
        cls = technique_class(raw["technique"])
    except InputError as error:
        found.append(from_error(error, place((*at, "technique"))))
        return None
    params = raw.get("params")
    if params is not None and not isinstance(params, dict):
        found.append(
            from_error(InputError("", params, "is not a mapping", "write `params: {…}`"), place((*at, "params")))
        )
        params = None
    return _built(cls, dict(params or {}), (*at, "params"), found)


def _built(cls: type[Technique], params: dict[Any, Any], at: Path, found: list[Finding]) -> Technique | None:
    """The technique; parameters that make no sense are reported, and replaced by the nearest or the usual value."""
    reported: set[Any] = set()
    while True:
        try:
            return cls.model_validate(params)
        except ValidationError as error:
            first = error.errors()[0]
            name = first["loc"][0] if first["loc"] else ""
            patch = None if name in reported else _mended(cls, params, (*at, name), first)
            if name not in reported:
                finding = from_error(InputError(*parameter_problem(cls, error, "")), place((*at, name)))
                found.append(
                    finding if patch is None else finding.model_copy(update={"patch": patch, "fix": _fix(patch)})
                )
            reported.add(name)
            if name not in params:  # the parameters do not go together, or a required one is missing
                return None
            value = params.pop(name)
            if patch is not None and patch.action == "set":
                params[name] = patch.value
            elif patch is not None and patch.action == "rename":
                params[patch.value] = value


def _mended(cls: type[Technique], params: Mapping[Any, Any], at: Path, problem: Any) -> Patch | None:
    """What puts one parameter right, where that needs no judgment."""
    name = str(at[-1])
    if problem["type"] == "extra_forbidden":
        near = [n for n in difflib.get_close_matches(name, cls.model_fields, n=1) if n not in params]
        return Patch(action="rename", at=at, value=near[0]) if near else Patch(action="unset", at=at)
    space, bounds = cls.space().get(name), set(problem.get("ctx") or {})
    if not isinstance(space, Range) or not bounds & {"gt", "ge", "lt", "le"}:
        return None
    value = space.low if bounds & {"gt", "ge"} else space.high
    return Patch(action="set", at=at, value=int(value) if cls.model_fields[name].annotation is int else value)


def _fix(patch: Patch) -> str:
    """What a patch of a parameter does, in words."""
    if patch.action == "rename":
        return f"call it {patch.value}"
    return "leave it out" if patch.action == "unset" else f"take {patch.value:g}, the nearest that search tries"

"""Decisions that are written down as cases: which rules they fire.

    [{"id": …, "says": …, "request": {"arch": "cnn", "target": "rack.yaml"}, "families": …, "rules": […], …}]

A target that ends in .yaml lies in the folder's `targets/`. `table` names a layer table in its `tables/`, which stands
in for the model's files; `evidence` says how many chains the user's own runs measured on the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from advisor.checking.findings import Finding
from advisor.checking.possible import Situation
from knowledge.conditions import FactValue, holds
from knowledge.layers import LayerTable, table_from_json
from knowledge.load import Knowledge
from knowledge.values import InputError, Workload

Case = Mapping[str, Any]
OWN = ("ranking", "nothing")  # what the ranking says itself


def read_cases(folder: Path) -> list[tuple[Path, Case]]:
    """Every case of a folder with its file. Raises InputError."""
    if not folder.is_dir():
        raise InputError("cases", folder, "no such folder", "give a folder with cases as JSON files")
    found: list[tuple[Path, Case]] = []
    for path in sorted(folder.glob("*.json")):
        try:
            cases = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError("cases", path, f"cannot be read ({error})", "write a JSON list of cases") from None
        if not isinstance(cases, list) or not all(map(_is_case, cases)):
            raise InputError(
                "cases", path, "is not a list of cases", "each has an id and a request, and names in lists"
            )
        found += [(path, case) for case in cases]
    return found


def _is_case(found: Any) -> bool:
    """Whether a JSON value has a case's fields, each of its kind."""
    if not isinstance(found, dict) or not isinstance(found.get("id"), str):
        return False
    names = (*_listed(found, "rules"), *_listed(found, "fired"))
    named = all(isinstance(name, str) for name in names) and isinstance(found.get("table", ""), str)
    return named and isinstance(found.get("request"), dict) and isinstance(found.get("evidence", 0), int)


def _listed(found: Mapping[str, Any], field: str) -> list[Any]:
    """The field's list; anything else as the one thing in it, which is no name."""
    value = found.get(field, [])
    return value if isinstance(value, list) else [None]


def exercised(
    knowledge: Knowledge, known: Sequence[Situation], cases: Sequence[tuple[Path, Case]], own: set[str], extra: str = ""
) -> Iterator[Finding]:
    """Rules among `own` that no case fires, and cases that name rules which are not there.

    `extra`: the user's folder, for the models that cases name.
    """
    fired: set[str] = set()
    said = {*knowledge.rules, *(preset.as_rule().id for preset in knowledge.presets.values()), *OWN}
    for path, case in cases:
        facts = case_facts(knowledge, path, case, extra)
        fired |= {one.rule.id for one in known if one.rule.id not in fired and holds(one.rule.when, facts)}
        for name in (*case.get("rules", ()), *case.get("fired", ())):
            if name not in said:
                said.add(name)
                text = f"case {case['id']} names this rule, and there is none"
                yield Finding(kind="unknown-rule", id=name, place=str(path), text=text, remedy="mend the case")
    for one in known:
        if one.rule.id in own - fired and one.terms:
            text, remedy = "no case fires it", "add a case whose request meets its condition"
            yield Finding(kind="unexercised", id=one.rule.id, place=one.place, text=text, remedy=remedy)


def case_facts(knowledge: Knowledge, path: Path, case: Case, extra: str = "") -> dict[str, FactValue]:
    """The facts of a case's request. Raises InputError naming the case."""
    from advisor.advise import with_preset
    from advisor.facts import facts_of
    from advisor.predict import Predictor
    from advisor.request import Request

    options = dict(case["request"])
    if str(options.get("target", "")).endswith(".yaml"):
        options["target"] = str(path.parent / "targets" / options["target"])
    try:
        request, known = with_preset(Request.parse(**options), knowledge)
        target = known.target(request.target)
        asked = (request.model, request.arch, request.task, request.params, request.workload, extra)
        layers = _read(path.parent / "tables" / case["table"]) if case.get("table") else _table(*asked)
        settled = request.settled(layers.info, target)
        predictor = Predictor(layers, target, settled.workload, known, settled.task or "")
        return facts_of(settled, predictor, case.get("evidence", 0))
    except InputError as error:
        raise InputError(f"{path}: {case['id']}", "", str(error), "mend the case's request") from None


@lru_cache(maxsize=256)
def _table(
    model: str, arch: str | None, task: str | None, params: int | None, workload: Workload, extra: str
) -> LayerTable:
    """The table of a model that cases ask about, built once."""
    from advisor.profile import profile_source

    return profile_source(model, arch=arch, task=task, params=params, workload=workload, knowledge=extra)


def _read(path: Path) -> LayerTable:
    try:
        return table_from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("table", path, f"cannot be read ({error})", "write a layer table as JSON") from None

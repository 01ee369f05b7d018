"""Decisions that are written down as cases: which rules they fire.

    [{"id": …, "says": …, "request": {"arch": "cnn", "target": "rack.yaml"}, "families": …, "rules": […], …}]

A target that ends in .yaml lies in the folder's `targets/`. `layers` names a model whose table stands in for a file
that the request names, and `evidence` how many runs of the model were measured.
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
from knowledge.layers import LayerTable
from knowledge.load import Knowledge
from knowledge.values import InputError

Case = Mapping[str, Any]


def read_cases(folder: Path) -> list[tuple[Path, Case]]:
    """Every case of a folder with its file. Raises InputError."""
    if not folder.is_dir():
        raise InputError("cases", folder, "no such folder", "give a folder with cases as JSON files")
    found: list[tuple[Path, Case]] = []
    for path in sorted(folder.glob("*.json")):
        try:
            cases = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError("cases", path, f"cannot be read ({error})", "write a JSON list of cases") from None
        if not isinstance(cases, list) or not all(isinstance(c, dict) and {"id", "request"} <= set(c) for c in cases):
            raise InputError("cases", path, "is not a list of cases", "each has an id and a request")
        found += [(path, case) for case in cases]
    return found


def exercised(
    knowledge: Knowledge, known: Sequence[Situation], cases: Sequence[tuple[Path, Case]], own: set[str]
) -> Iterator[Finding]:
    """Rules among `own` that no case fires, and cases that name rules which are not there."""
    fired: set[str] = set()
    told: set[str] = set()
    for path, case in cases:
        facts = case_facts(knowledge, path, case)
        fired |= {one.rule.id for one in known if one.rule.id not in fired and holds(one.rule.when, facts)}
        for name in (*case.get("rules", ()), *case.get("fired", ()), *case.get("refused_by", {}).values()):
            if name not in knowledge.rules and name not in told and not name.startswith(OWN):
                told.add(name)
                text = f"case {case['id']} names this rule, and there is none"
                yield Finding(kind="unknown-rule", id=name, place=str(path), text=text, remedy="mend the case")
    for one in known:
        if one.rule.id in own - fired and one.terms:
            text, remedy = "no case fires it", "add a case whose request meets its condition"
            yield Finding(kind="unexercised", id=one.rule.id, place=one.place, text=text, remedy=remedy)


OWN = ("technique-", "ranking", "nothing")  # what techniques and the ranking say themselves


def case_facts(knowledge: Knowledge, path: Path, case: Case) -> dict[str, FactValue]:
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
        layers = _table(
            case.get("layers") or request.model, request.arch, request.task, request.params,
            request.workload.model_dump_json(),
        )  # fmt: skip
        settled = request.settled(layers.info, target)
        predictor = Predictor(layers, target, settled.workload, known, settled.task or "")
        return facts_of(settled, predictor, int(case.get("evidence", 0)))
    except InputError as error:
        raise InputError(f"{path}: {case['id']}", "", str(error), "mend the case's request") from None


@lru_cache(maxsize=256)
def _table(model: str, arch: str | None, task: str | None, params: int | None, workload: str) -> LayerTable:
    from advisor.profile import profile_source
    from knowledge.values import Workload

    return profile_source(model, arch=arch, task=task, params=params, workload=Workload.model_validate_json(workload))

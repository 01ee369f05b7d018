"""Plan files: YAML in, checked Plan out; order and parameters are refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ValidationError

from knowledge.conditions import GOALS
from knowledge.files import write_text
from knowledge.load import load_knowledge
from knowledge.names import nearest
from knowledge.sources import is_factory, is_function
from knowledge.tasks import check_metric, check_task
from knowledge.techniques.base import Level, Phase, Technique
from knowledge.techniques.catalog import build
from knowledge.values import InputError, Plan
from knowledge.yaml_values import NotYaml, parse

ONCE = (Phase.QUANTIZE, Phase.FUSE)  # a second stage would work on what the first has replaced


@dataclass(frozen=True)
class StageProblem:
    """Why a stage cannot stand where it does."""

    kind: Literal["order", "repeat", "no-loss"]
    stage: int
    technique: str
    problem: str
    remedy: str
    other: str = ""  # the technique before it that it collides with


def load_plan(path: Path, allow_code: bool = False) -> Plan:
    """A plan from its file, to be run; raises InputError naming file, field, value and remedy.

    A plan never runs the user's code on its own: a factory model or a metric function needs `allow_code`.
    """
    plan = read_plan(path)
    _check_names(plan, str(path))
    if not allow_code:
        _refuse_code(plan, str(path))
    return plan


def read_plan(path: Path) -> Plan:
    """A plan from its file, to be looked at: what it names need not exist. Raises InputError as `load_plan` does."""
    plan = _checked(read_raw(path), Path(path))
    check_stages(plan, str(path))
    return plan


def read_raw(path: Path) -> dict[str, Any]:
    """The mapping in a plan file, whatever it holds; raises InputError where there is none."""
    try:
        raw = parse(Path(path).read_bytes())[0].value
    except FileNotFoundError:
        raise InputError("plan", path, "no such file", "make one with `advisor search MODEL --out DIR`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("plan", path, f"cannot be read ({error})") from None
    except NotYaml as error:
        raise InputError("plan", path, f"line {error.line}: {error.problem}", error.remedy) from None
    if not isinstance(raw, dict):
        raise InputError("plan", path, "is not a mapping", "a plan starts with `schema: advisor.plan/1`")
    return raw


def _checked(raw: dict[str, Any], path: Path) -> Plan:
    try:
        return Plan.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        value = "" if isinstance(first["input"], dict | list) else first["input"]
        known = ", ".join(fields_at(first["loc"][:-1]))
        if first["type"] == "extra_forbidden":
            raise InputError(f"{path}: {field}", value, "unknown field", f"known fields: {known}") from None
        if first["type"] == "missing":
            raise InputError(f"{path}: {field}", "", "is missing", f"add `{first['loc'][-1]}:`") from None
        raise InputError(f"{path}: {field}", value, first["msg"].lower(), _usual(first["loc"])) from None


def fields_at(loc: Iterable[str | int]) -> list[str]:
    """Names that may stand in the part of a plan at `loc`."""
    model: type[BaseModel] = Plan
    for part in loc:
        field = model.model_fields.get(str(part))
        inner = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        # a number leads into one of several
        model = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _usual(loc: Sequence[str | int]) -> str:
    """What a wrong value may be replaced by."""
    known = fields_at(loc)
    inner = known != fields_at(loc[:-1])
    return f"write a mapping of {', '.join(known)}" if inner else "see a plan of `advisor search`"


def techniques(plan: Plan, where: str = "stages") -> list[Technique]:
    """The plan's techniques with their parameters checked."""
    return [build(stage, f"{where}[{number}]") for number, stage in enumerate(plan.stages)]


def check_stages(plan: Plan, where: str) -> None:
    """Raise InputError where parameters or the order of stages are illegal."""
    for found in stage_problems(techniques(plan, f"{where}: stages")):
        raise InputError(f"{where}: stages[{found.stage}]", found.technique, found.problem, found.remedy)


def stage_problems(chain: Sequence[Technique]) -> Iterator[StageProblem]:
    """Why stages of a chain cannot stand where they do, in their order."""
    last = None
    for number, technique in enumerate(chain):
        found = _problem(number, technique, last)
        if found is not None:
            yield found
        elif technique.phase is not None:
            last = technique


def _problem(number: int, technique: Technique, last: Technique | None) -> StageProblem | None:
    """What speaks against a technique after `last`, the last one before it that is no recovery."""
    if last is None:
        if technique.phase is None:
            remedy = "put a lossy stage before it"
            return StageProblem("no-loss", number, technique.id, "nothing to recover from", remedy)
        return None
    if last.level is Level.GRAPH and technique.level is Level.MODEL:
        problem = f"changes the torch model but stands after {last.id}, which changes the exported file"
        return StageProblem("order", number, technique.id, problem, f"move it before {last.id}", last.id)
    if technique.phase is not None and last.phase is not None and technique.phase < last.phase:
        problem = f"{technique.family} stands after {last.family}"
        return StageProblem("order", number, technique.id, problem, f"move it before {last.id}", last.id)
    if technique.phase in ONCE and technique.phase == last.phase:
        problem = f"stands after {last.id}: a plan has one {technique.family} stage"
        return StageProblem("repeat", number, technique.id, problem, f"leave out {technique.id} or {last.id}", last.id)
    return None


def _check_names(plan: Plan, where: str) -> None:
    """Raise InputError for a target, a goal, a task or a metric that nobody knows."""
    try:
        if plan.goal not in GOALS:
            raise InputError("goal", plan.goal, "unknown goal", nearest(plan.goal, GOALS))
        check_task(plan.task)
        check_metric(plan.task, plan.metric)
        load_knowledge(plan.knowledge or None).target(plan.target)
    except InputError as error:
        raise InputError(f"{where}: {error.field}", error.value, error.problem, error.remedy) from None


def _refuse_code(plan: Plan, where: str) -> None:
    for field, value, code in (
        ("model", plan.model, is_factory(plan.model)),
        ("metric", plan.metric, is_function(plan.metric)),
    ):
        if code:
            raise InputError(
                f"{where}: {field}", value, "names code that would run", "add --allow-code if you trust it"
            )


def save_plan(plan: Plan, path: Path) -> None:
    """Write a plan as YAML that `load_plan` reads back to the same plan."""
    data = plan.model_dump(mode="json", by_alias=True, exclude_none=True)
    write_text(path, yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=120))

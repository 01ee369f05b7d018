"""Reading rules, claims and targets from YAML: ours, with the user's folder laid over them by id."""

from __future__ import annotations

import difflib
import graphlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from knowledge.conditions import ConditionError, check
from knowledge.schema import Claim, Conclusion, Figure, Order, Requirement, Rule, Setting, Target, Weighted
from knowledge.techniques.base import Family
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError

HERE = Path(__file__).parent
KINDS = ("rules", "claims", "targets")
PARTS: tuple[type[BaseModel], ...] = (Conclusion, Weighted, Requirement, Order, Setting, Figure)  # of entries

Entry = TypeVar("Entry", bound=BaseModel)


@dataclass(frozen=True)
class Knowledge:
    """Everything that advice rests on, by id. `origin` names the file of each entry, as kind/id."""

    rules: Mapping[str, Rule]
    claims: Mapping[str, Claim]
    targets: Mapping[str, Target]
    origin: Mapping[str, str]

    @cached_property
    def claims_by_technique(self) -> dict[str, list[Claim]]:
        """Claims that estimates may use, by technique."""
        found: dict[str, list[Claim]] = {}
        for claim in self.claims.values():
            if claim.estimate:
                found.setdefault(claim.technique, []).append(claim)
        return found

    def target(self, name: str) -> Target:
        """A target by id, or from a YAML file; raises InputError with the nearest names."""
        if name in self.targets:
            return self.targets[name]
        if name.endswith((".yaml", ".yml")):
            return load_target(Path(name))
        near = difflib.get_close_matches(name, self.targets, n=3, cutoff=0.4) or list(self.targets)
        raise InputError("target", name, "unknown target", f"did you mean {', '.join(near)}? Or give a YAML file")


def load_knowledge(extra: Path | str | None = None) -> Knowledge:
    """Ours, with the folder `extra` laid over it: an entry there replaces ours of the same id.

    The folder may hold `rules/`, `claims/` and `targets/`, each with YAML files like ours. Raises InputError naming
    file, line, field and remedy on anything that cannot be understood.
    """
    found: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    origin: dict[str, str] = {}
    folders = [HERE]
    if extra is not None:
        folders.append(_user_folder(Path(extra)))
    for folder in folders:
        for kind in KINDS:
            layer: dict[str, str] = {}
            for path in sorted((folder / kind).glob("*.y*ml")):
                for entry in _read(path, kind):
                    if entry.id in layer:
                        problem = f"the id is already taken in {layer[entry.id]}"
                        raise InputError(f"{path}: {kind}", entry.id, problem, "give it an id of its own")
                    layer[entry.id] = str(path)
                    found[kind][entry.id] = entry
                    origin[f"{kind}/{entry.id}"] = str(path)
    check_order(found["rules"].values(), origin)
    return Knowledge(found["rules"], found["claims"], found["targets"], origin)


def _user_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError("knowledge", folder, "no such folder", "it may hold rules/, claims/ and targets/")
    known = [kind for kind in KINDS if (folder / kind).is_dir()]
    if not known:
        raise InputError("knowledge", folder, f"holds none of {', '.join(f'{k}/' for k in KINDS)}")
    return folder


def load_target(path: Path) -> Target:
    """One target from its YAML file; raises InputError."""
    target: Target = _read(path, "targets")[0]
    return target


def _read(path: Path, kind: str) -> list[Any]:
    """The checked entries of one file."""
    try:
        text = path.read_text()
        raw = yaml.load(text, Loader=yaml.CSafeLoader)
    except FileNotFoundError:
        raise InputError(kind.removesuffix("s"), path, "no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(kind, path, f"cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise InputError(kind, path, f"is not YAML ({error})") from None
    if not isinstance(raw, dict):
        raise InputError(kind, path, "is not a mapping", f"start it with `{'id' if kind == 'targets' else kind}:`")
    if kind == "targets":
        return [_entry(Target, raw, path, (), text)]
    model: type[Rule] | type[Claim] = Rule if kind == "rules" else Claim
    shared = {name: value for name, value in raw.items() if name != kind}
    if unknown := set(shared) - set(model.model_fields):
        name = sorted(unknown)[0]
        raise InputError(
            f"{path}: {name}", shared[name], "unknown field", f"known: {kind}, {', '.join(model.model_fields)}"
        )
    entries = raw.get(kind)
    if not isinstance(entries, list):
        raise InputError(f"{path}: {kind}", entries, "is not a list", f"write `{kind}:` and one `- id:` per entry")
    return [_entry(model, entry, path, (kind, n), text, shared) for n, entry in enumerate(entries)]


def _entry(
    model: type[Entry], raw: Any, path: Path, where: tuple[Any, ...], text: str, shared: Mapping[str, Any] | None = None
) -> Entry:
    """One checked entry; fields that the whole file shares stand in for its own."""
    if not isinstance(raw, dict):
        raise InputError(_place(path, text, where), raw, "is not a mapping", "start it with `id:`")
    name = raw.get("id", "?")
    try:
        entry = model.model_validate({**shared, **raw} if shared else raw)
        if isinstance(entry, Rule):
            check(entry.when)
        return entry
    except ValidationError as error:
        first = error.errors()[0]
        loc = first["loc"]
        field = ".".join(map(str, loc))
        value = "" if first["type"] in ("missing", "value_error") else first["input"]
        problem, remedy = _explained(model, first["type"], first["msg"], str(loc[-1]) if loc else "")
    except ConditionError as error:
        loc = tuple(error.field.split(".")[:1]) + (
            (error.field.split(".", 1)[1].split("[")[0],) if "." in error.field else ()
        )
        field, value, problem, remedy = error.field, error.value, error.problem, error.remedy
    raise InputError(f"{_place(path, text, (*where, *loc))}: {name}: {field}".rstrip(": "), value, problem, remedy)


def _explained(model: type[BaseModel], kind: str, message: str, name: str) -> tuple[str, str]:
    """A validation message as (problem, remedy)."""
    if kind == "missing":
        remedy = "say where this comes from; `estimated` where it is a guess" if name == "source" else ""
        return "is missing", remedy
    if kind == "extra_forbidden":
        known = dict.fromkeys(field for part in (model, *PARTS) for field in part.model_fields)
        near = difflib.get_close_matches(name, known, n=1)
        return "unknown field", f"did you mean {near[0]}?" if near else f"known: {', '.join(model.model_fields)}"
    problem, _, remedy = message.removeprefix("Value error, ").partition(": ")
    return problem[:1].lower() + problem[1:], remedy


def _place(path: Path, text: str, loc: Iterable[Any]) -> str:
    """`file:line` of the deepest part of `loc` that the file holds. Composes it again: only errors pay for lines."""
    node = yaml.compose(text, Loader=yaml.CSafeLoader)
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


def members(name: str) -> list[str]:
    """Technique ids behind a family name or a technique id."""
    if name in CATALOG:
        return [name]
    return [t for t, cls in CATALOG.items() if cls.family is Family(name)]


def check_order(rules: Iterable[Rule], origin: Mapping[str, str]) -> None:
    """Raise InputError when `before` rules contradict each other or the phases that techniques declare."""
    after: dict[str, set[str]] = {}

    def edge(first: str, then: str) -> None:
        after.setdefault(then, set()).add(first)

    phases = sorted({cls.phase for cls in CATALOG.values() if cls.phase is not None})
    for number, phase in enumerate(phases):
        for technique, cls in CATALOG.items():
            if cls.phase is phase:
                edge(f"start of {phase.name}", technique)
                edge(technique, f"end of {phase.name}")
        if number:
            edge(f"end of {phases[number - 1].name}", f"start of {phase.name}")
    said: dict[tuple[str, str], str] = {}
    for rule in rules:
        for order in (c.before for c in rule.then if c.before is not None):
            for first in members(order.first):
                for then in members(order.then):
                    edge(first, then)
                    said[first, then] = rule.id
    try:
        graphlib.TopologicalSorter(after).prepare()
    except graphlib.CycleError as error:
        cycle: list[str] = error.args[1]
        pairs = [pair for first, then in itertools.pairwise(cycle) for pair in ((first, then), (then, first))]
        blamed = next(said[pair] for pair in pairs if pair in said)
        shown = " → ".join(name for name in cycle if name in CATALOG)
        field = f"{origin.get(f'rules/{blamed}', 'rules')}: {blamed}: before"
        raise InputError(field, shown, "the order runs in a circle", "turn it round or drop the rule") from None

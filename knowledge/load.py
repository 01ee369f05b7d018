"""Reading knowledge from YAML: ours, with the user's own folders laid over it by id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from knowledge.names import nearest
from knowledge.order import check_order
from knowledge.order import members as members
from knowledge.presets import Preset
from knowledge.reading import SUFFIXES, Kind, layers, merged, read
from knowledge.schema import Claim, Conclusion, Figure, Order, Requirement, Rule, Setting, Target, Weighted
from knowledge.typical import MODELS, TypicalModel
from knowledge.values import InputError

RULES = Kind("rules", Rule, (Conclusion, Weighted, Requirement, Order, Setting), listed=True)
CLAIMS = Kind("claims", Claim, listed=True)
TARGETS = Kind("targets", Target, (Figure,))
PRESETS = Kind("presets", Preset)
ALL_KINDS: dict[str, Kind[Any]] = {kind.name: kind for kind in (RULES, CLAIMS, TARGETS, MODELS, PRESETS)}
KINDS = tuple(ALL_KINDS)


@dataclass(frozen=True)
class Knowledge:
    """Everything that advice rests on, by id. `origin` names file and line of each entry, as kind/id."""

    rules: Mapping[str, Rule]
    claims: Mapping[str, Claim]
    targets: Mapping[str, Target]
    origin: Mapping[str, str]
    models: Mapping[str, TypicalModel] = field(default_factory=dict)
    presets: Mapping[str, Preset] = field(default_factory=dict)

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
        if name.endswith(SUFFIXES):
            return load_target(Path(name))
        raise InputError("target", name, "unknown target", nearest(name, self.targets, "a YAML file"))

    def preset(self, name: str) -> Preset:
        """A preset by id; raises InputError with the nearest names."""
        if name not in self.presets:
            raise InputError("preset", name, "unknown preset", nearest(name, self.presets))
        return self.presets[name]


def load_knowledge(extra: Path | str | None = None) -> Knowledge:
    """Ours, with the user's own folder laid over it, and `extra` over both: an entry replaces one of the same id.

    Each folder may hold `rules/`, `claims/`, `targets/`, `models/` and `presets/`, with YAML files like ours. Raises
    InputError naming file, line, field, value and remedy on anything that cannot be understood.
    """
    if extra:
        _check_folder(Path(extra).expanduser())
    folders = layers(extra)
    found = {name: merged(kind, folders) for name, kind in ALL_KINDS.items()}
    origin = {f"{kind}/{name}": one.place for kind, entries in found.items() for name, one in entries.items()}
    values = {kind: {name: one.entry for name, one in entries.items()} for kind, entries in found.items()}
    check_order(values["rules"].values(), origin)
    return Knowledge(origin=origin, **values)


def _check_folder(folder: Path) -> None:
    shown = ", ".join(f"{kind}/" for kind in KINDS)
    if not folder.is_dir():
        raise InputError("knowledge", folder, "no such folder", f"it may hold {shown}")
    if not any((folder / kind).is_dir() for kind in KINDS):
        raise InputError("knowledge", folder, f"holds none of {shown}", "see `advisor knowledge new --help`")


def load_target(path: Path) -> Target:
    """One target from its YAML file; raises InputError."""
    target: Target = read(path, TARGETS)[0].entry
    return target

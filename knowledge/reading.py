"""Entries from folders of YAML files: checked, with the line of each, later folders laid over earlier ones by id.

A problem is one line with file, line, entry, field, value and what would help.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from knowledge.faults import Fault, fault_of, place
from knowledge.parsed import parsed
from knowledge.places import config_folder
from knowledge.values import InputError
from knowledge.yaml_values import NotYaml, Parsed

HERE = Path(__file__).parent
SUFFIXES = (".yaml", ".yml")
Entry = TypeVar("Entry", bound=BaseModel)


@dataclass(frozen=True)
class Kind(Generic[Entry]):
    """What a folder holds: lists of entries under a key of the folder's name, or one entry in each file."""

    name: str  # of the folder
    model: type[Entry]
    parts: tuple[type[BaseModel], ...] = field(default=(), repr=False)  # models that its fields are made of
    listed: bool = False


class Placed(NamedTuple):
    """An entry and where it stands, as `file:line`."""

    entry: Any
    place: str


def layers(extra: Path | str | None = None) -> list[Path]:
    """Folders of knowledge, each laid over those before it: ours, the user's own, the one that is named."""
    own, named = config_folder(), Path(extra).expanduser() if extra else None
    found = [HERE, own] if own.is_dir() else [HERE]
    if named is not None and not (own.is_dir() and named.is_dir() and named.samefile(own)):
        found.append(named)
    return found


def merged(kind: Kind[Entry], folders: Iterable[Path]) -> dict[str, Placed]:
    """Every entry of a kind by id. Raises InputError, also where two files of one folder use the same id."""
    found: dict[str, Placed] = {}
    for folder in folders:
        layer: dict[str, str] = {}
        for path in files(folder / kind.name):
            for one in read(path, kind):
                name = one.entry.id
                if name in layer:
                    problem = f"the id is already taken at {layer[name]}"
                    raise InputError(f"{one.place}: id", name, problem, "give it an id of its own")
                layer[name] = one.place
                found[name] = one
    return found


def files(folder: Path) -> list[Path]:
    """The YAML files of a folder, by name; none where there is no such folder. Raises InputError."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise InputError(folder.name, folder, problem, "make it a folder that can be read") from None


def read(path: Path, kind: Kind[Entry]) -> Sequence[Placed]:
    """The checked entries of one file. Raises InputError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(kind.name.removesuffix("s"), path, "no such file", "check the path") from None
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise InputError(kind.name, path, problem, "make it readable, or move it away") from None
    return checked(path, kind, data)


@lru_cache(maxsize=256)  # a plan, a trial and a report each ask for all knowledge again
def checked(path: Path, kind: Kind[Entry], data: bytes) -> tuple[Placed, ...]:
    """The entries of a file that holds these bytes; shared by all who read it, so nobody changes them."""
    try:
        file = parsed(data)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}", "", "is not UTF-8", "save the file as UTF-8 text") from None
    except NotYaml as error:
        raise InputError(f"{path}:{error.line}", error.value, error.problem, error.remedy) from None
    reader = _Reader(path, kind, data, file)
    return tuple(reader.list()) if kind.listed else (reader.single(),)


@dataclass(frozen=True)
class _Reader(Generic[Entry]):
    """One file while it is read."""

    path: Path
    kind: Kind[Entry]
    data: bytes
    file: Parsed

    def single(self) -> Placed:
        if not isinstance(self.file.value, dict):
            raise self.problem((), "", "is not a mapping", "start it with `id:`")
        return Placed(self.entry(self.file.value, ()), f"{self.path}:{self.file.lines[''][0]}")

    def list(self) -> list[Placed]:
        name, value = self.kind.name, self.file.value
        if not isinstance(value, dict):
            raise self.problem((), "", "is not a mapping", f"start it with `{name}:`")
        shared = {key: one for key, one in value.items() if key != name}
        if unknown := [key for key in shared if key not in self.kind.model.model_fields or key == "id"]:
            near = difflib.get_close_matches(str(unknown[0]), [name], n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]}?" if near else f"known: {name}, {', '.join(self.kind.model.model_fields)}"
            raise self.problem((unknown[0],), shared[unknown[0]], "unknown field", remedy)
        entries = value.get(name)
        if not isinstance(entries, list):
            raise self.problem((name,), entries, "is not a list", f"write `{name}:` and one `- id:` per entry")
        lines = self.file.lines[name]
        return [Placed(self.entry(raw, (name, n), shared), f"{self.path}:{lines[n]}") for n, raw in enumerate(entries)]

    def entry(self, raw: Any, loc: Sequence[str | int], shared: Mapping[str, Any] | None = None) -> Entry:
        """One checked entry; fields that the whole file shares stand in for its own."""
        if not isinstance(raw, dict):
            raise self.problem(loc, raw, "is not a mapping", "start it with `id:`")
        try:
            return self.kind.model.model_validate({**shared, **raw} if shared else raw)
        except ValidationError as error:
            fault = fault_of(self.kind.model, self.kind.parts, error)
        elsewhere = shared is not None and fault.loc[:1] and fault.loc[0] in shared and fault.loc[0] not in raw
        where = fault.loc if elsewhere else (*loc, *fault.loc)
        raise self.problem(where, fault.value, fault.problem, fault.remedy, f"{raw.get('id', '?')}: {fault.field}")

    def problem(self, loc: Sequence[Any], value: Any, problem: str, remedy: str, name: str = "") -> InputError:
        """A problem at a place of this file."""
        shown = name or Fault(tuple(loc), value, problem).field
        where = place(self.path, self.data.decode("utf-8-sig"), loc)
        return InputError(f"{where}: {shown}".rstrip(": "), value, problem, remedy)

"""Rows of evidence in JSON files, a row per line; those that ship with the package, one file per embedded model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from knowledge.evidence import Evidence
from knowledge.files import write_text
from knowledge.values import InputError

FOLDER = Path(__file__).parent / "evidence"
ROUNDING = 1e-6  # of figures that are computed from one another


@lru_cache(maxsize=1)
def load_evidence() -> tuple[Evidence, ...]:
    """All rows that ship, model by model."""
    return tuple(row for path in sorted(FOLDER.glob("*.json")) for row in read_rows(path))


def read_rows(path: Path) -> tuple[Evidence, ...]:
    """The rows of a file. Raises InputError naming the file, the row and the field of the first fault."""
    try:
        return parse_rows(path.read_bytes(), path)
    except FileNotFoundError:
        raise InputError("evidence", path, "no such file", "give one that `advisor evidence export` wrote") from None
    except OSError as error:
        raise InputError("evidence", path, f"cannot be read: {error.strerror}", "give a JSON file") from error


def parse_rows(text: bytes | str, path: Path) -> tuple[Evidence, ...]:
    """The rows in a JSON list that was read from `path`; raises InputError as `read_rows`. Rows are counted from 1."""
    try:
        return _list_of_rows().validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if not first["loc"]:  # the file as a whole
        remedy = "give a list of rows, as `advisor evidence export` writes it"
        raise InputError("evidence", path, first["msg"].lower(), remedy)
    number, *names = first["loc"]
    raise _problem(path, int(number) + 1, ".".join(map(str, names)) or "row", first["msg"].lower())


def write_rows(path: Path, rows: Iterable[Evidence]) -> None:
    """Replace the file in one step."""
    lines = ",\n".join(json.dumps(row.model_dump(mode="json"), ensure_ascii=False) for row in rows)
    write_text(path, f"[\n{lines}\n]\n" if lines else "[]\n")


def check_rows(path: Path, rows: Sequence[Evidence]) -> None:
    """Raise InputError for the first row that cannot be a measurement: file, row and field."""
    from knowledge.techniques.catalog import build

    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if not row.stages:
            raise _problem(path, number, "stages", "nothing was carried out")
        for place, stage in enumerate(row.stages):
            try:
                build(stage)
            except InputError as error:
                field = ".".join(["stages", str(place), *error.field.split(".")[1:]])
                raise _problem(path, number, field, f"{error.value}: {error.problem}") from None
        for field, value in row.model_dump().items():
            if isinstance(value, float) and not math.isfinite(value):
                raise _problem(path, number, field, f"{value} is no figure")
        if not row.id or row.id in seen:
            text = f"{row.id} is the id of row {seen[row.id]}" if row.id else "is empty"
            raise _problem(path, number, "id", text)
        if not math.isclose(abs(row.drop), _difference(row), rel_tol=ROUNDING, abs_tol=ROUNDING):
            text = f"{row.drop:g} {row.unit} is not the difference of {row.baseline_quality:g} and {row.quality:g}"
            raise _problem(path, number, "drop", text)
        seen[row.id] = number


def _difference(row: Evidence) -> float:
    """Of the two qualities, in the row's unit, whichever is better."""
    difference = 100 * abs(row.baseline_quality - row.quality)
    return difference if row.unit == "pp" else difference / max(abs(row.baseline_quality), 1e-12)


def _problem(path: Path, number: int, field: str, text: str) -> InputError:
    return InputError("evidence", path, f"row {number}: {field}: {text}", "mend the row, or leave it out")


@lru_cache(maxsize=1)
def _list_of_rows() -> TypeAdapter[tuple[Evidence, ...]]:
    return TypeAdapter(tuple[Evidence, ...])

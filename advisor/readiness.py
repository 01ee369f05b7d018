"""Whether each technique can run on this installation, found without importing what it needs."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from backends.executors import EXECUTORS
from knowledge.techniques.catalog import CATALOG
from knowledge.values import Value

ROOT = Path(__file__).parent.parent
OWN = ("advisor", "backends", "knowledge")
NOT_YET = "cannot be run yet"


class Readiness(Value):
    """Whether a technique can run here."""

    technique: str
    runs: bool
    why_not: str = ""

    @property
    def planned_only(self) -> bool:
        """Whether it is known and has no executor: no fault of this installation."""
        return self.why_not == NOT_YET


@lru_cache
def runnable() -> frozenset[str]:
    """Techniques that have an executor; those without can be planned with, not carried out."""
    return frozenset(cls.id for cls in EXECUTORS)


def readiness() -> Iterator[Readiness]:
    """Each technique with the libraries that its executor imports and that are not installed."""
    for technique, cls in CATALOG.items():
        if technique not in runnable():
            yield Readiness(technique=technique, runs=False, why_not=NOT_YET)
            continue
        module = EXECUTORS[cls].partition(":")[0]
        file = _own_file(module)
        if file is None:
            yield Readiness(technique=technique, runs=False, why_not=f"its executor {module} is missing")
            continue
        missing = sorted(name for name in imported(file) if importlib.util.find_spec(name) is None)
        why_not = f"needs {', '.join(missing)}" if missing else ""
        yield Readiness(technique=technique, runs=not missing, why_not=why_not)


@lru_cache
def imported(file: Path) -> frozenset[str]:
    """Top-level libraries that an executor's source needs, through our own modules too; nothing is executed.

    Elsewhere than in the executor itself, an import inside a function is for some uses only and does not count.
    """
    libraries: set[str] = set()
    seen, waiting = set(), [file]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for name in _names(current, everywhere=current == file):
            top = name.partition(".")[0]
            if top not in OWN:
                libraries.add(top)
            elif (own := _own_file(name)) is not None:
                waiting.append(own)
    return frozenset(libraries - set(sys.stdlib_module_names))


def _names(file: Path, everywhere: bool) -> Iterator[str]:
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _own_file(module: str) -> Path | None:
    """Source of one of our modules; None where there is none."""
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)

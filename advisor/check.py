"""The self-check of the knowledge: what loads, and yet cannot work or cannot be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from advisor.checking import entries
from advisor.checking.cases import Case, exercised, read_cases
from advisor.checking.findings import CheckReport, Finding
from advisor.checking.possible import situations
from advisor.checking.rules import RuleCheck
from knowledge.load import KINDS, Knowledge, load_knowledge
from knowledge.reading import HERE, layers

CASES = HERE.parent / "tests" / "cases"  # of a source checkout; an installed package has none


def check_knowledge(extra: Path | str | None = None, cases: Path | str | None = None) -> CheckReport:
    """Check ours with the user's folders laid over it.

    `extra` is the folder that is asked about; without it, ours is. Whether cases exercise its rules is looked at where
    there are cases: `cases`, or the folder's own `cases/`, or those of the source checkout for ours. Raises InputError
    on what does not load.
    """
    known = load_knowledge(extra)
    where = Path(cases).expanduser() if cases else _own_cases(extra)
    read = read_cases(where) if where is not None else None
    found = list(_findings(known, extra, read))
    return CheckReport(
        findings=tuple(f for f in found if not f.note),
        notes=tuple(f for f in found if f.note),
        counts={kind: len(getattr(known, kind)) for kind in KINDS},
        cases=None if read is None else len(read),
    )


def _own_cases(extra: Path | str | None) -> Path | None:
    folder = Path(extra).expanduser() / "cases" if extra else CASES
    return folder if folder.is_dir() else None


def _findings(known: Knowledge, extra: Path | str | None, cases: list[tuple[Path, Case]] | None) -> Iterator[Finding]:
    folders = layers(extra)
    rules = situations(known, folders)
    yield from RuleCheck(known, rules).findings()
    if cases is not None:
        asked = len(folders) - 1 if extra else 0
        own = {one.rule.id for one in rules if one.layer == asked}
        yield from exercised(known, rules, cases, own, str(extra or ""))
    yield from entries.techniques(rules)
    yield from entries.claims(known)
    yield from entries.targets(known)
    yield from entries.models(known)
    for folder in folders[1:]:
        yield from entries.folders(folder)

"""What lint says of a plan: findings, and the changes that mend them without judgment."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from knowledge.values import InputError, Value

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")  # strongest first
Path = tuple[str | int, ...]  # of a field in the file: ("stages", 1, "params", "ratio")


class Patch(Value):
    """A mechanical change of a plan file. Stages are counted as they stand in the file before anything is changed.

    set      the field `at` becomes `value`          drop     the stage `at` goes
    unset    the field `at` goes                     insert   the stage `value` comes right after the stage `at`
    rename   the field `at` is called `value`        order    the stages stand in the order of `value`
    """

    action: Literal["set", "unset", "rename", "drop", "insert", "order"]
    at: Path = ()
    value: Any = None


class Finding(Value):
    """One thing to know about a plan, with what would mend it.

    error: it cannot be carried out, or a rule refuses it. warning: it can, and is likely to disappoint. note: worth
    knowing.
    """

    id: str  # of the check
    level: Level
    where: str  # in the file: stages[1].params.ratio
    observed: str
    why: str
    source: str
    fix: str
    rule: str = ""  # of the rule base, where it says so
    patch: Patch | None = None


class Report(Value):
    """What is to say of a plan file, after `--fix` what is left, with what was changed."""

    schema_version: Literal["advisor.lint/1"] = Field("advisor.lint/1", alias="schema")
    plan: str
    findings: tuple[Finding, ...]
    changes: tuple[str, ...] = ()  # parameters that it was looked at with, and what was mended
    written: str = ""  # the file that holds them
    original: str = ""  # the plan as it was, where that file is the plan's own

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @property
    def exit_code(self) -> int:
        """1 where an error or a warning is left."""
        return int(any(f.level != "note" for f in self.findings))

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


def place(at: Path) -> str:
    """A field as people write it.

    >>> place(("stages", 1, "params", "ratio"))
    'stages[1].params.ratio'
    """
    text = ""
    for part in at:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def from_error(
    error: InputError, where: str, check: str = "", patch: Patch | None = None, level: Level = "error"
) -> Finding:
    """What a refusal of the planner means for the plan."""
    value = f"{error.value!s}: " if str(error.value) else ""
    return Finding(
        id=check,
        level=level,
        where=where,
        observed=f"{value}{error.problem}",
        why="`advisor run` refuses it",
        source="this tool",
        fix=error.remedy or "correct the field",
        patch=patch,
    )


def said(
    level: Level, at: Path, observed: str, why: str, fix: str, source: str = "", patch: Patch | None = None
) -> Finding:
    """A finding in a check's own words; the check adds its id, and where no source is given, the seed it stands on."""
    where = place(at) or "plan"
    return Finding(id="", level=level, where=where, observed=observed, why=why, source=source, fix=fix, patch=patch)


def sorted_findings(found: list[Finding]) -> tuple[Finding, ...]:
    """The gravest first, each once: what a rule says of one place is said at its highest level only."""
    ranked = sorted(found, key=lambda f: LEVELS.index(f.level))
    kept: dict[tuple[str, ...], Finding] = {}
    for finding in ranked:
        key = (finding.rule, finding.where) if finding.rule else (finding.id, finding.where, finding.observed)
        kept.setdefault(key, finding)
    return tuple(kept.values())

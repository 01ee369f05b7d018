"""What diagnose says of a run or a study: what was seen, why, and what to try next."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from knowledge.values import Value

S1 = "Step 4: Advanced Model Compression, Troubleshooting"  # where most of the advice comes from
Level = Literal["problem", "cause", "note"]
LEVELS: tuple[Level, ...] = ("problem", "cause", "note")


class Diagnosis(Value):
    """One thing that explains a result.

    problem: unfinished, or the budget is missed. cause: why a gain is not there. note: worth knowing.
    """

    id: str
    level: Level
    about: str  # run, study, stage 2 (int8_static)
    seen: str  # with this run's figures
    why: str
    source: str
    advice: str
    commands: tuple[str, ...]  # to try next, in their order


class Report(Value):
    """Everything that is to say of a folder."""

    schema_version: Literal["advisor.diagnosis/1"] = Field("advisor.diagnosis/1", alias="schema")
    folder: str
    kind: Literal["run", "study"]
    verdict: str  # in a sentence
    diagnoses: tuple[Diagnosis, ...]

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @property
    def exit_code(self) -> int:
        """1 where something is unfinished or the budget is missed."""
        return int(any(d.level == "problem" for d in self.diagnoses))

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)

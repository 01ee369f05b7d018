"""What a check of the knowledge found: where, what, and what would help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from knowledge.values import Value

Kind = Literal[
    "never-fires",  # a rule whose condition no request can meet
    "no-effect",  # a conclusion that can never matter
    "contradiction",  # two rules that say opposite things of the same request
    "unexercised",  # a rule that no case fires
    "unknown-rule",  # a case that names a rule which is not there
    "unreached",  # a technique that no rule is about
    "mixed-protocols",  # figures that share a curve, by different protocols
    "no-protocol",  # a figure that estimates lean on, by nobody knows which protocol
    "no-origin",  # a target's figure that does not say where it comes from
    "size",  # a typical model whose sizes do not give its parameters
    "target",  # a rule that no known target meets
    "duplicate",  # two rules that say the same
    "unread",  # a folder that looks as if it were knowledge
]


class Finding(Value):
    """One thing that is wrong, or worth knowing, with an entry."""

    kind: Kind
    id: str
    place: str = ""  # file:line
    text: str
    remedy: str = ""
    others: tuple[str, ...] = ()  # ids of the entries that it is found with
    note: bool = False  # worth knowing, no fault


class CheckReport(Value):
    """Everything that was found, faults first."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: Literal["advisor.check/1"] = Field("advisor.check/1", alias="schema")
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    counts: Mapping[str, int]  # entries by kind
    cases: int | None  # that were read; None: there were none to read

    @property
    def exit_code(self) -> int:
        """1 where something is wrong."""
        return 1 if self.findings else 0

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, `schema` first."""
        return self.model_dump(mode="json", by_alias=True)

"""The answer to a request as values: chains with estimates and reasons, refusals, and what would change it."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from advisor.costs import Cost
from advisor.request import Request
from advisor.verdicts import Refused
from knowledge.values import Estimate, Interval, Value


class Reason(Value):
    """Why a chain is proposed, or why in this order: the rule, its sentence, who says so."""

    rule: str
    text: str
    source: str


class Miss(Value):
    """A limit that a chain is not expected to meet, and by how much."""

    limit: str
    required: float
    estimated: float
    missing: float
    unit: str


class ChainStage(Value):
    """A technique with the parameters to start from; `ranges` are what search tries, as rules narrow it."""

    technique: str
    family: str
    runs: bool = True  # False: known to the advisor, but its executor is not there yet
    params: dict[str, Any]
    ranges: dict[str, list[Any]] = Field(default_factory=dict)


class Chain(Value):
    """One way to get there."""

    rank: int
    id: str
    stages: tuple[ChainStage, ...]
    estimate: Estimate
    fits: bool
    reasons: tuple[Reason, ...]
    warnings: tuple[str, ...]
    misses: tuple[Miss, ...] = ()
    cost: Cost | None = None

    @property
    def runs(self) -> bool:
        """Whether every stage can be carried out."""
        return all(stage.runs for stage in self.stages)


class Change(Value):
    """One thing that would change the answer: the option to give, and what it would bring."""

    option: str  # as the command line takes it; empty where the target would have to be another one
    text: str
    chain: str  # id of the chain that would come first
    compression: Interval
    speedup: Interval


class Recommendation(Value):
    """Ranked chains for a request. `nearest` is set when nothing fits: the chain that misses by the least.

    `changes` are what would make the answer another one. Where not `all_estimated`, there are more chains than may be
    estimated: the most promising were, and those that compress most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: Literal["advisor.recommendation/1"] = Field("advisor.recommendation/1", alias="schema")
    request: Request
    facts: dict[str, Any]
    profile: dict[str, Any]
    chains: tuple[Chain, ...]
    chains_estimated: int
    all_estimated: bool
    refused: tuple[Refused, ...]
    nearest: str = ""
    changes: tuple[Change, ...] = ()

    @property
    def defaults(self) -> tuple[str, ...]:
        """Every default that mattered, in words."""
        return self.request.assumed

    @property
    def fits(self) -> bool:
        """Whether any chain meets every limit."""
        return any(chain.fits for chain in self.chains)

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON values, `schema` first."""
        return self.model_dump(mode="json", by_alias=True)

"""The answer to a request: ranked chains with estimates and reasons, and what was refused. Nothing is run."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import ConfigDict, Field

from advisor.facts import facts_of, figure
from advisor.graph import build_graph, explore
from advisor.predict import Predictor
from advisor.ranking import Ranked, Ranking
from advisor.reasons import objects, supports
from advisor.request import Request
from advisor.rules import Refused, Verdicts, judge
from knowledge.conditions import fill
from knowledge.layers import LayerTable
from knowledge.load import Knowledge, load_knowledge
from knowledge.schema import Rule, Target
from knowledge.techniques.base import Choices, Range, Technique
from knowledge.values import Budget, Estimate, Plan, Stage, Value

UNITS = {"size": "bytes", "memory": "bytes", "latency": "ms", "speedup": "×"}
RANKING_SOURCE = "this tool: chains whose estimates overlap are put in order by rules"


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
    """A technique with the parameters to start from; `ranges` where rules narrow what search may try."""

    technique: str
    family: str
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


class Recommendation(Value):
    """Ranked chains for a request. `nearest` is set when nothing fits: the chain that misses by the least."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: Literal["advisor.recommendation/1"] = Field("advisor.recommendation/1", alias="schema")
    request: Request
    facts: dict[str, Any]
    profile: dict[str, Any]
    chains: tuple[Chain, ...]
    refused: tuple[Refused, ...]
    nearest: str = ""

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


def advise(request: Request, knowledge: Knowledge | None = None, layers: LayerTable | None = None) -> Recommendation:
    """Rank chains of techniques for a request, from what is known.

    `layers` is the model's table where it is at hand; otherwise it is read from the model's files, or a typical model
    of the family stands in. Raises InputError on anything wrong with the request, the model or the knowledge.
    """
    known = knowledge or load_knowledge(request.knowledge or None)
    target = known.target(request.target)
    layers = layers if layers is not None else table_for(request)
    settled = request.settled(layers.info, target)
    predictor = Predictor(layers, target, settled.workload, known, settled.task or "")
    facts = facts_of(settled, predictor)
    verdicts = judge(known, facts, predictor)
    ranking = Ranking(settled, predictor, verdicts)
    candidates = explore(build_graph(verdicts), verdicts, predictor, ranking.score)
    ranked = ranking.order(candidates)[: settled.top]
    answer = Answer(settled, predictor, verdicts)
    chains = tuple(answer.chain(number, one) for number, one in enumerate(ranked, 1))
    return Recommendation(
        request=settled,
        facts=facts,
        profile=profile_of(predictor),
        chains=chains,
        refused=verdicts.refused,
        nearest="" if any(c.fits for c in chains) or not chains else chains[0].id,
    )


def table_for(request: Request) -> LayerTable:
    """The model's table from its files, weights unread, or that of a typical model. Raises InputError."""
    from advisor.profile import profile_source

    return profile_source(
        request.model, arch=request.arch, task=request.task, workload=request.workload, params=request.params
    )


def profile_of(predictor: Predictor) -> dict[str, Any]:
    """The uncompressed model in a few numbers."""
    layers, base = predictor.layers, predictor.baseline
    info = layers.info
    return {
        "name": info.name,
        "family": info.family,
        "subfamily": info.subfamily,
        "task": info.task,
        "typical": info.typical,
        "layers": len(layers),
        "parameters": layers.parameters,
        "macs": layers.macs,
        "size_bytes": round(base.bytes),
        "embedding_share": round(base.layers.embedding_share, 4),
        "latency_ms": round(base.latency.total, 4),
    }


class Answer:
    """Words for ranked chains."""

    def __init__(self, request: Request, predictor: Predictor, verdicts: Verdicts) -> None:
        self.request, self.predictor, self.verdicts = request, predictor, verdicts

    def chain(self, rank: int, ranked: Ranked) -> Chain:
        """A ranked candidate with its estimate, reasons in reading order and warnings."""
        candidate = ranked.candidate
        estimate = self.predictor.estimate(candidate.outlook)
        return Chain(
            rank=rank,
            id="+".join(candidate.ids) or "nothing",
            stages=tuple(self.stage(t) for t in candidate.techniques),
            estimate=estimate,
            fits=ranked.fits,
            reasons=tuple(self.reasons(rank, ranked)),
            warnings=tuple(self.warnings(ranked, estimate)),
            misses=tuple(self.miss(limit, *pair) for limit, pair in ranked.misses.items()),
        )

    def stage(self, technique: Technique) -> ChainStage:
        narrowed = self.verdicts.ranges.get(technique.id, {})
        return ChainStage(
            technique=technique.id,
            family=technique.family.value,
            params=technique.model_dump(mode="json"),
            ranges={name: _span(space) for name, space in narrowed.items()},
        )

    def reasons(self, rank: int, ranked: Ranked) -> list[Reason]:
        """The rules that speak for a chain, in the order in which the trees ask their questions."""
        ids, compression = ranked.candidate.ids, ranked.candidate.outlook.compression
        found = [self.reason(r) for r in self.verdicts.fired if supports(r, ids, compression)]
        if not ids and not ranked.misses:
            found.append(Reason(rule="nothing", text="The model as it is, for comparison.", source=RANKING_SOURCE))
        if rank == 1 and ranked.overturned and ids:
            others = "another chain" if ranked.overturned == 1 else f"{ranked.overturned} other chains"
            text = f"The estimates of {others} are a little better, but they overlap with this one's: the rules decide."
            found.append(Reason(rule="ranking", text=text, source=RANKING_SOURCE))
        return found

    def reason(self, rule: Rule) -> Reason:
        text = f"{rule.text} {rule.departs}".strip()
        return Reason(rule=rule.id, text=fill(text, self.verdicts.facts), source=rule.source)

    def warnings(self, ranked: Ranked, estimate: Estimate) -> list[str]:
        ids, compression = ranked.candidate.ids, ranked.candidate.outlook.compression
        against = [fill(r.text, self.verdicts.facts) for r in self.verdicts.fired if objects(r, ids, compression)]
        found = [*against, *self.verdicts.warnings(ids, compression)]
        drop = estimate.quality_drop
        if ranked.fits and drop.high > self.request.max_drop:
            spent = f"{self.request.max_drop:g} {self.request.max_drop_unit}"
            found.append(
                f"The loss may reach {drop.high:.1f} {drop.unit}, above the {spent} to spend: let search find out."
            )
        unchecked = latency_note(self.request, self.predictor.target)
        return list(dict.fromkeys([*found, unchecked] if unchecked else found))

    def miss(self, limit: str, required: float, estimated: float) -> Miss:
        unit = UNITS.get(limit, self.request.max_drop_unit or "pp")
        return Miss(limit=limit, required=required, estimated=estimated, missing=abs(estimated - required), unit=unit)


def _span(space: Range | Choices) -> list[Any]:
    return [space.low, space.high] if isinstance(space, Range) else list(space)


def to_plan(chain: Chain, recommendation: Recommendation) -> Plan:
    """A chain as a plan that `advisor run` carries out, every parameter fixed at its starting value."""
    request = recommendation.request
    target = load_knowledge(request.knowledge or None).target(request.target)
    cores = os.cpu_count() or 1
    notes = [latency_note(request, target)]
    if request.workload.threads > cores:
        notes.append(f"Measured with {cores} threads instead of {request.workload.threads}: this machine has no more.")
    return Plan(
        model=request.model,
        task=request.task or "",
        arch=request.arch or "" if request.arch_named else "",
        target=request.target,
        knowledge=request.knowledge,
        workload=request.workload.model_copy(update={"threads": min(request.workload.threads, cores)}),
        budget=budget_on(request, target),
        goal=request.goal,
        data=request.data,
        metric=request.metric,
        seed=request.seed,
        stages=tuple(Stage(technique=s.technique, params=s.params) for s in chain.stages),
        estimate=chain.estimate,
        reasons=(*(reason.text for reason in chain.reasons), *filter(None, notes)),
    )


def budget_on(request: Request, target: Target) -> Budget:
    """The budget that a run is held to: the target's own limits count, milliseconds only where they can be measured."""
    size, memory = figure(target.max_size_bytes), figure(target.max_memory_bytes)
    return request.budget.model_copy(
        update={
            "max_size_bytes": _least(request.max_size_bytes, size),
            "max_memory_bytes": _least(request.max_memory_bytes, memory),
            "max_latency_ms": request.max_latency_ms if target.measured else None,
        }
    )


def latency_note(request: Request, target: Target) -> str:
    """What to say of a latency limit that a run on this machine cannot check; empty where it can."""
    if request.max_latency_ms is None or target.measured:
        return ""
    limit = f"{request.max_latency_ms:g} ms"
    return f"Latency on {target.id} is estimated, not measured: a run here does not check the limit of {limit}."


def _least(asked: int | None, own: float | None) -> int | None:
    limits = [int(limit) for limit in (asked, own) if limit]
    return min(limits, default=None)

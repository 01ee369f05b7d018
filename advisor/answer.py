"""An answer in words: why a chain is proposed, what speaks against it, which limits it misses."""

from __future__ import annotations

from typing import Any

from advisor.costs import CostModel
from advisor.predict import Predictor
from advisor.proposal import latency_note
from advisor.ranking import Ranked
from advisor.readiness import runnable
from advisor.reasons import objects, supports
from advisor.recommendation import Chain, ChainStage, Miss, Reason
from advisor.request import Request
from advisor.verdicts import Verdicts
from knowledge.conditions import fill
from knowledge.schema import Rule
from knowledge.techniques.base import Choices, Range, Technique
from knowledge.values import Estimate

UNITS = {"size": "bytes", "memory": "bytes", "latency": "ms", "speedup": "×"}
OWN_SOURCE = "this tool"
RANKING_SOURCE = f"{OWN_SOURCE}: chains whose estimates overlap are put in order by rules"
NOT_YET = "it can be planned with, but not carried out yet"


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
        self.costs = CostModel(predictor.layers, predictor.workload)

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
            cost=self.costs.chain(candidate.techniques),
        )

    def stage(self, technique: Technique) -> ChainStage:
        space = {**technique.space_for(self.predictor.layers), **self.verdicts.ranges.get(technique.id, {})}
        return ChainStage(
            technique=technique.id,
            family=technique.family.value,
            runs=technique.id in runnable(),
            params=technique.model_dump(mode="json"),
            ranges={name: _span(left) for name, left in space.items()},
        )

    def reasons(self, rank: int, ranked: Ranked) -> list[Reason]:
        """The rules that speak for a chain, in the order in which the trees ask their questions."""
        ids, compression = ranked.candidate.ids, ranked.candidate.outlook.compression
        found = [self.reason(r) for r in self.verdicts.fired if supports(r, ids, compression)]
        if not ids and not ranked.misses:
            found.append(Reason(rule="nothing", text="The model as it is, for comparison.", source=OWN_SOURCE))
        if rank == 1 and ranked.harmless and self.request.goal == "quality" and not self.request.limited:
            text = "Quality is the goal and no limit is given: what is expected to lose nothing comes first."
            found.append(Reason(rule="ranking", text=text, source=OWN_SOURCE))
        elif rank == 1 and ranked.overturned and ids:
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
        waiting = [t for t in ids if t not in runnable()]
        if waiting:
            found.append(
                f"{' and '.join(waiting)}: {NOT_YET}; search leaves {'it' if len(waiting) == 1 else 'them'} out."
            )
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

"""The answer to a request: facts and rules deliberate, chains are explored and ranked, and put into words."""

from __future__ import annotations

from dataclasses import dataclass, replace

import networkx as nx

from advisor.answer import NOT_YET, OWN_SOURCE, Answer, profile_of
from advisor.changes import MORE_DROP, changes_of
from advisor.evidence import own_evidence
from advisor.exploration import Candidate, Explored, explore
from advisor.facts import facts_of
from advisor.graph import build_graph
from advisor.predict import Predictor
from advisor.ranking import Ranked, Ranking
from advisor.readiness import runnable
from advisor.recommendation import Recommendation
from advisor.request import Request
from advisor.rules import judge
from advisor.verdicts import Refused, Verdicts
from knowledge.conditions import Facts
from knowledge.evidence import Evidence
from knowledge.layers import LayerTable
from knowledge.load import Knowledge, load_knowledge
from knowledge.measured import load_evidence


@dataclass(frozen=True)
class Deliberation:
    """Everything that led to an answer."""

    request: Request  # settled
    knowledge: Knowledge
    predictor: Predictor
    facts: Facts
    verdicts: Verdicts
    graph: nx.DiGraph
    explored: Explored
    ranked: tuple[Ranked, ...]  # all candidates, best first
    answer: Answer

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The chains worth comparing."""
        return self.explored.candidates


def deliberate(
    request: Request,
    knowledge: Knowledge | None = None,
    layers: LayerTable | None = None,
    only_runnable: bool = False,
) -> Deliberation:
    """Judge, explore and rank every chain for a request, from what is known; nothing is run.

    `layers` is the model's table where it is at hand; otherwise it is read from the model's files, or a typical model
    of the family stands in. `only_runnable` leaves out techniques that cannot be carried out yet. Raises InputError on
    anything wrong with the request, the model or the knowledge.
    """
    known = knowledge or load_knowledge(request.knowledge or None)
    request, known = with_preset(request, known)
    target = known.target(request.target)
    layers = layers if layers is not None else table_for(request)
    settled = request.settled(layers.info, target)
    evidence = all_evidence()
    predictor = Predictor(layers, target, settled.workload, known, settled.task or "", settled.model, evidence)
    return consider(settled, known, predictor, only_runnable)


def consider(settled: Request, known: Knowledge, predictor: Predictor, only_runnable: bool = False) -> Deliberation:
    """The deliberation over a settled request, for a predictor that is at hand."""
    facts = facts_of(settled, predictor, sum(row.model == settled.model for row in own_evidence()))
    verdicts = judge(known, facts, predictor)
    if only_runnable:
        verdicts = without_planned(verdicts)
    ranking = Ranking(settled, predictor, verdicts)
    graph = build_graph(verdicts)
    explored = explore(graph, verdicts, predictor, ranking.score, ranking.hope(MORE_DROP))
    ranked = tuple(ranking.order(explored.candidates))
    answer = Answer(settled, predictor, verdicts)
    return Deliberation(settled, known, predictor, facts, verdicts, graph, explored, ranked, answer)


def without_planned(verdicts: Verdicts) -> Verdicts:
    """The verdicts with every technique refused that has no executor yet."""
    runs = runnable()
    gone = [name for name in verdicts.settings if name not in runs]
    refused = tuple(
        Refused(technique=name, rule="technique-not-yet", text=f"Allowed, but {NOT_YET}.", source=OWN_SOURCE)
        for name in gone
    )
    settings = {name: planned for name, planned in verdicts.settings.items() if name in runs}
    return replace(verdicts, settings=settings, refused=(*verdicts.refused, *refused))


def advise(
    request: Request,
    knowledge: Knowledge | None = None,
    layers: LayerTable | None = None,
    only_runnable: bool = False,
) -> Recommendation:
    """Rank chains of techniques for a request, in words and numbers; see `deliberate`."""
    thought = deliberate(request, knowledge, layers, only_runnable)
    chains = tuple(thought.answer.chain(n, one) for n, one in enumerate(thought.ranked[: thought.request.top], 1))
    return Recommendation(
        request=thought.request,
        facts=dict(thought.facts),
        profile=profile_of(thought.predictor),
        chains=chains,
        chains_estimated=thought.explored.estimated,
        all_estimated=thought.explored.complete,
        refused=thought.verdicts.refused,
        nearest="" if any(c.fits for c in chains) or not chains else chains[0].id,
        changes=changes_of(thought, consider),
    )


def all_evidence() -> tuple[Evidence, ...]:
    """What the user's own runs measured, and what ships with the package."""
    return (*own_evidence(), *load_evidence())


def with_preset(request: Request, known: Knowledge) -> tuple[Request, Knowledge]:
    """The request and the rules under the preset that was asked for: its budget, and its parameters to start from."""
    if not request.preset:
        return request, known
    preset = known.preset(request.preset)
    if "max_drop" not in request.model_fields_set and preset.max_drop:
        asked = Request.parse(arch="cnn", max_drop=preset.max_drop)
        request = request.model_copy(update={"max_drop": asked.max_drop, "max_drop_unit": asked.max_drop_unit})
    rule = preset.as_rule()
    return request, replace(known, rules={**known.rules, rule.id: rule})


def table_for(request: Request) -> LayerTable:
    """The model's table from its files, weights unread, or that of a typical model. Raises InputError."""
    from advisor.profile import profile_source

    return profile_source(
        request.model,
        arch=request.arch,
        task=request.task,
        workload=request.workload,
        params=request.params,
        knowledge=request.knowledge,
    )

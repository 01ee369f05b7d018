"""From a question to a searched answer: recommend, then search the recommended chains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from advisor.advise import advise, all_evidence
from advisor.predict import estimate
from advisor.progress import Progress, silent
from advisor.proposal import to_plan
from advisor.recommendation import Recommendation
from advisor.request import Request
from advisor.studies.space import Step
from advisor.studies.study import SearchResult, search_chains
from knowledge.layers import LayerTable
from knowledge.load import load_knowledge
from knowledge.values import Drop, Estimate, InputError, Plan, Stage


def search(
    request: Request,
    trials: int,
    out: Path,
    *,
    storage: str | None = None,
    time_budget_seconds: float | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> SearchResult:
    """Search the chains that are recommended for `request`, run and verify the best one into the study folder `out`.

    Figures are measured on this machine, whatever the target; the target decides which chains are tried and within
    which limits. Raises InputError on anything wrong with the request, the model or its data, and where there is no
    chain to try.
    """
    knowledge = load_knowledge(request.knowledge or None)
    advice = advise(request, knowledge, only_runnable=True)
    chains = search_space(advice)
    if not chains:
        remedy = "see `advisor recommend` for what was refused and why"
        raise InputError("model", request.model, "no technique applies to it within these options", remedy)
    target, evidence = knowledge.target(advice.request.target), all_evidence()

    def expected(layers: LayerTable, stages: Sequence[Stage]) -> Estimate:
        return estimate(layers, stages, target, advice.request.workload, knowledge, request.model, evidence)

    return search_chains(
        in_unit_of_metric(to_plan(advice.chains[0], advice), advice.request),
        chains,
        out,
        trials=trials,
        storage=storage,
        time_budget_seconds=time_budget_seconds,
        workers=workers,
        recommendation=advice.to_json(),
        estimate=expected,
        progress=progress,
    )


def in_unit_of_metric(plan: Plan, request: Request) -> Plan:
    """The plan with its drop counted as its metric counts losses, unless the request named a unit.

    Raises InputError for a metric that cannot be imported.
    """
    from backends.tasks import task_for

    if request.drop_unit_named:
        return plan
    drop = Drop(amount=plan.budget.max_drop.amount, unit=task_for(plan.task, plan.metric).unit)
    return plan.model_copy(update={"budget": plan.budget.model_copy(update={"max_drop": drop})})


def search_space(advice: Recommendation) -> list[list[Step]]:
    """The chains to search, best first; doing nothing needs no search."""
    return [[Step(s.technique, s.params, s.ranges) for s in chain.stages] for chain in advice.chains if chain.stages]

"""A recommended chain as a plan that can be run: every parameter fixed, limits that this machine can check."""

from __future__ import annotations

import os

from advisor.facts import figure
from advisor.recommendation import Chain, Recommendation
from advisor.request import Request
from knowledge.load import load_knowledge
from knowledge.schema import Target
from knowledge.values import Budget, Plan, Stage


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

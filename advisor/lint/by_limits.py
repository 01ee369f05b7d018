"""Checks of limits: what the target takes, what the budget says, what is expected, and whether it is in reach."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from advisor.facts import misses_of
from advisor.lint.case import Case
from advisor.lint.findings import Finding, Patch, Path, said
from advisor.proposal import budget_on
from advisor.units import bytes_text, ms_text, ratio_text
from knowledge.techniques.base import Family
from knowledge.techniques.catalog import CATALOG
from knowledge.values import Interval

ENDS = "the run would end with exit code 1"
SHOWN = {"size": bytes_text, "memory": bytes_text, "latency": ms_text, "speedup": ratio_text}
FIELDS = {"size": "max_size_bytes", "memory": "max_memory_bytes", "latency": "max_latency_ms", "speedup": "min_speedup"}


def deployment_limits(case: Case) -> Iterator[Finding]:
    """Limits of the target that the budget does not hold the file to, and one that no run here can check."""
    budget, target = case.draft.plan.budget, case.target
    own = budget_on(case.request, target)
    for field, what in (("max_size_bytes", "file"), ("max_memory_bytes", "memory")):
        limit, asked = getattr(own, field), getattr(budget, field)
        if limit is not None and (asked is None or asked > limit):
            at: Path = ("budget", field)
            allowed = bytes_text(asked) if asked else "any"
            observed = f"{target.id} takes at most {bytes_text(limit)} of {what}, the budget allows {allowed}"
            why = "a run holds the file to its plan's budget: it could pass, and not fit where it is to run"
            patch = Patch(action="set", at=at, value=limit)
            yield said("warning", at, observed, why, f"set it to {limit}", getattr(target, field).source, patch)
    if budget.max_latency_ms is not None and not target.measured:
        at = ("budget", "max_latency_ms")
        observed = f"{ms_text(budget.max_latency_ms)} on {target.id}, which a run here does not measure"
        why = "a run times the file on this machine, and would hold that to a limit for another"
        fix = "leave the limit out, and time the file on the target"
        source = f"{target.id}: its rates are estimated"
        yield said("warning", at, observed, why, fix, source, Patch(action="unset", at=at))


def budget_missed(case: Case) -> Iterator[Finding]:
    """Limits that the file is not expected to meet: by the plan's own estimate, or by a fresh one where it has none."""
    outlook, plan = case.outlook, case.draft.plan
    own = plan.estimate if plan.estimate is not None and not _stale(case) else None
    size, latency, speedup = outlook.bytes, outlook.latency.total, outlook.speedup
    drop, source = case.predictor.estimate(outlook).quality_drop, f"layer tables and the roofline of {case.target.id}"
    if own is not None:
        size, latency, speedup, drop = own.size_bytes.mid, own.latency_ms.mid, own.speedup.mid, own.quality_drop
        source = "the plan's own estimate"
    misses = misses_of(case.request, case.predictor, size, latency, speedup, outlook.memory_bytes)
    for limit, (asked, expected) in misses.items():
        show, field = SHOWN[limit], FIELDS[limit]
        whose = "the target" if getattr(plan.budget, field) is None else "the budget"
        observed = f"{limit}: {show(expected)} expected, {show(asked)} is the limit of {whose}"
        yield said("warning", ("budget", field), observed, ENDS, search_instead(case), source)
    yield from _quality_missed(case, drop)


def _quality_missed(case: Case, drop: Interval) -> Iterator[Finding]:
    allowed, unit = case.request.max_drop, case.request.max_drop_unit
    at: Path = ("budget", "max_drop")
    if drop.mid > allowed + 1e-9:
        observed = f"quality: a loss of {drop.mid:.2f} {drop.unit} expected, {allowed:g} {unit} allowed"
        yield said("warning", at, observed, ENDS, search_instead(case), drop.basis)
    elif drop.high > allowed:
        observed = f"quality: the loss may reach {drop.high:.2f} {drop.unit}, {allowed:g} {unit} allowed"
        yield said("note", at, observed, "only a run can tell", search_instead(case), drop.basis)


def stale_estimate(case: Case) -> Iterator[Finding]:
    """An estimate of other stages than the plan has now."""
    own = case.draft.plan.estimate
    if own is not None and _stale(case):
        now = bytes_text(case.outlook.bytes)
        observed = f"the plan expects {bytes_text(own.size_bytes.mid)}, its stages lead to {now}"
        why = "stages or parameters were changed after it was made"
        yield said("note", ("estimate",), observed, why, "leave the estimate out", "arithmetic on this model's layers")


def _stale(case: Case) -> bool:
    own = case.draft.plan.estimate
    fresh = case.predictor.estimate(case.outlook).size_bytes
    return own is not None and not fresh.low <= own.size_bytes.mid <= fresh.high


def one_technique(case: Case) -> Iterator[Finding]:
    """One kind of compression where the wanted size is out of its reach."""
    wanted, compression = case.verdicts.facts.get("wanted_ratio"), case.outlook.compression
    kinds = {CATALOG[name].family for name in case.ids} - {Family.RECOVER, Family.FUSE}
    if isinstance(wanted, float) and len(kinds) == 1 and compression < wanted:
        chain = " → ".join(case.ids)
        observed = f"{chain} makes it {ratio_text(compression)} smaller, {ratio_text(wanted)} is wanted"
        why = "one technique does not reach aggressive targets: quantization, pruning and distillation multiply"
        yield said("warning", ("stages",), observed, why, search_instead(case))


def search_instead(case: Case) -> str:
    """What to do about a chain that will not do."""
    command = shlex.join(["advisor", "search", case.request.model, "--target", case.request.target])
    return f"let `{command}` look for a chain that does"

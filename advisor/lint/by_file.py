"""Checks that need no model: order, names, data, threads, and parameters that switch a stage off."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from advisor.lint.case import Case, data_level, legal_order
from advisor.lint.findings import Finding, Patch, from_error, place, said
from advisor.lint.findings import Path as At
from advisor.lint.read import Draft
from advisor.plans import stage_problems
from advisor.readiness import readiness
from knowledge.conditions import GOALS, fill
from knowledge.names import nearest
from knowledge.sources import is_function
from knowledge.tasks import TASKS, check_metric, check_task
from knowledge.techniques.base import Need, Range
from knowledge.values import InputError

PARTS = ("train", "calibration", "eval")
LARGE_DROP_PP = 5.0  # Model Compression Techniques, Success Criteria: acceptable for most tasks


def order(draft: Draft, case: Case | None) -> Iterator[Finding]:
    """Stages that cannot stand where they do, and pairs that a rule puts the other way round."""
    numbers = sorted(draft.techniques)
    chain = [draft.techniques[n] for n in numbers]
    rules = _order_rules(case)
    legal = legal_order(draft.techniques, set(rules))
    complete = len(numbers) == len(draft.stages)  # otherwise it is not known where the others belong
    reorder = Patch(action="order", value=legal) if complete else None
    wrong: set[int] = set()
    for problem in stage_problems(chain):
        number = numbers[problem.stage]
        wrong.add(number)
        patch: Patch | None = Patch(action="drop", at=("stages", number), value=problem.technique)
        if problem.kind == "repeat":  # which of the two goes is a choice
            patch = patch if problem.technique == problem.other else None
        elif number in legal:
            patch = reorder
        observed = f"{problem.technique}: {problem.problem}"
        finding = said("error", ("stages", number), observed, "`advisor run` refuses it", problem.remedy, patch=patch)
        yield finding.model_copy(update=rules.get((problem.technique, problem.other), {}))
    for position, number in enumerate(numbers):
        technique = chain[position].id
        before = next((e.id for e in chain[:position] if (technique, e.id) in rules), None)
        if before is not None and number not in wrong:
            observed, fix = f"{technique}: stands after {before}", f"move it before {before}"
            finding = said("error", ("stages", number), observed, "", fix, patch=reorder)
            yield finding.model_copy(update=rules[technique, before])


def _order_rules(case: Case | None) -> dict[tuple[str, str], dict[str, str]]:
    """(first, then) -> the words of the rule that orders them."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    if case is None:
        return found
    for name, first, then in case.verdicts.orders():
        rule = case.knowledge.rules[name]
        why = fill(f"{rule.text} {rule.departs}".strip(), case.verdicts.facts)
        found.setdefault((first, then), {"rule": name, "why": why, "source": rule.source})
    return found


def names(draft: Draft, case: Case | None) -> Iterator[Finding]:
    """A goal, a task or a metric that nobody knows."""
    plan = draft.plan
    if plan.goal not in GOALS:
        yield from_error(InputError("goal", plan.goal, "unknown goal", nearest(plan.goal, GOALS)), "goal")
    try:
        if plan.task:
            check_task(plan.task)
    except InputError as error:
        yield from_error(error, "task")
    try:
        if plan.task in TASKS:
            check_metric(plan.task, plan.metric)
    except InputError as error:
        yield from_error(error, "metric")


def code(draft: Draft, case: Case | None) -> Iterator[Finding]:
    """A metric of the user's own."""
    if is_function(draft.plan.metric):
        error = InputError("metric", draft.plan.metric, "names code that would run", "run it with --allow-code")
        yield from_error(error, "metric", level="note")


def data(draft: Draft, case: Case | None) -> Iterator[Finding]:
    """Data that are missing, misnamed or not there: nothing is calibrated, trained or judged without."""
    plan = draft.plan
    for part in plan.data:
        if part not in PARTS:
            near = difflib.get_close_matches(part, PARTS, n=1)
            patch = Patch(action="rename", at=("data", part), value=near[0]) if near else None
            remedy = f"call it {near[0]}" if near else f"give {', '.join(PARTS)}"
            yield from_error(InputError("", part, "unknown part", remedy), place(("data", part)), patch=patch)
    given = {part: name for part, name in plan.data.items() if name}
    for part, name in given.items():
        is_path = name.startswith((".", "/", "~")) or Path(name).suffix != ""
        if is_path and not Path(name).expanduser().exists():
            error = InputError("", name, "no such file or folder", "give .jsonl, .csv, .npz or an image folder")
            yield from_error(error, place(("data", part)))
    paths = [name for name in given.values() if not name.startswith("zoo:")]
    if len(set(paths)) < len(paths):
        error = InputError("", ", ".join(paths), "one file serves two parts", "give it once: it is split by seed")
        yield from_error(error, "data")
    if set(given) == {"calibration"}:
        yield from_error(InputError("", given["calibration"], "calibration alone cannot judge", "add eval"), "data")
    if plan.model and data_level(plan) == "none":
        remedy = "add data: {eval: FILE}, and train: FILE to recover what is lost"
        yield from_error(InputError("", "", f"there are none, and {plan.model} brings none", remedy), "data")


def threads(draft: Draft, case: Case | None) -> Iterator[Finding]:
    """More threads than this machine has cores."""
    wanted, cores = draft.plan.workload.threads, os.cpu_count() or 1
    if wanted > cores:
        at: At = ("workload", "threads")
        observed = f"{wanted} threads on a machine with {cores} cores"
        why = "threads that wait for a core are timed, not the model"
        patch = Patch(action="set", at=at, value=cores)
        yield said("warning", at, observed, why, f"ask for {cores}, or run the plan on the target", "this tool", patch)


def quality_budget(draft: Draft, case: Case | None) -> Iterator[Finding]:
    """A quality budget beyond what most tasks bear."""
    drop = draft.plan.budget.max_drop
    if drop.unit == "pp" and drop.amount > LARGE_DROP_PP:
        why = f"for most tasks a loss is acceptable below {LARGE_DROP_PP:g} points"
        fix = f"allow less than {LARGE_DROP_PP:g} pp, unless the task bears it"
        yield said("note", ("budget", "max_drop"), f"up to {drop} may be lost", why, fix)


def cannot_run(draft: Draft, case: Case | None) -> Iterator[Finding]:
    """Techniques that this installation cannot carry out."""
    used = {technique.id for technique in draft.techniques.values()}
    why_not = {r.technique: r.why_not for r in readiness() if not r.runs and r.technique in used}
    for number, technique in draft.techniques.items():
        if technique.id in why_not:
            error = InputError("", technique.id, f"does not run here: {why_not[technique.id]}", "see `advisor doctor`")
            yield from_error(error, place(("stages", number)))


def trains_nothing(draft: Draft, case: Case | None) -> Iterator[Finding]:
    """Training for no epoch: the stage is there, and recovers nothing."""
    for number, technique in draft.techniques.items():
        if Need.TRAINING in technique.needs and getattr(technique, "epochs", None) == 0:
            at: At = ("stages", number, "params", "epochs")
            usual = type(technique).model_fields["epochs"].default
            why = "a training that is skipped to save time is quality lost that a few epochs bring back"
            patch = Patch(action="set", at=at, value=usual)
            yield said(
                "warning", at, f"{technique.id} trains for no epoch", why, f"train for {usual} epochs", "", patch
            )


def too_much_at_once(draft: Draft, case: Case | None) -> Iterator[Finding]:
    """A stage that removes more than any search would try: its dial stands beyond the technique's range."""
    for number, technique in draft.techniques.items():
        space, value = technique.space().get(technique.dial), getattr(technique, technique.dial or "id")
        if not isinstance(space, Range) or not isinstance(value, int | float):
            continue
        if technique.dial in _bounded(case, technique.id):  # a rule says it better
            continue
        nearest = min(max(value, space.low), space.high)
        if technique.strength() > technique.model_copy(update={technique.dial: nearest}).strength():
            at: At = ("stages", number, "params", technique.dial)
            observed = f"{technique.id}: {technique.dial} {value:g}, beyond the {nearest:g} that search tries"
            why = "what is compressed too much at once no training brings back"
            fix = f"take {nearest:g}, in several steps or with another technique where that is not enough"
            yield said("warning", at, observed, why, fix, patch=Patch(action="set", at=at, value=nearest))


def _bounded(case: Case | None, technique: str) -> set[str]:
    """Parameters of a technique that rules narrow for this request."""
    said = [c.set for rule in case.verdicts.fired for c in rule.then if c.set is not None] if case is not None else []
    return {s.param for s in said if s.technique == technique and (s.low is not None or s.high is not None)}

"""A plan as the rule base and the predictor see it: facts, verdicts, and what each stage does in numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from advisor.advise import all_evidence
from advisor.evidence import own_evidence
from advisor.facts import facts_of
from advisor.lint.findings import Finding, Patch, from_error
from advisor.lint.read import Draft
from advisor.plans import ONCE
from advisor.predict import Outlook, Predictor, after
from advisor.profile import profile_source
from advisor.request import Request
from advisor.rules import judge
from advisor.verdicts import Verdicts
from knowledge.conditions import GOALS
from knowledge.layers import LayerTable
from knowledge.load import Knowledge, load_knowledge
from knowledge.schema import Target
from knowledge.sources import is_factory
from knowledge.techniques.base import Level, Technique
from knowledge.values import InputError, Plan, Refusal

FIELDS = {  # of a request -> of a plan
    "max-drop": "budget.max_drop",
    "seq-len": "workload.seq_len",
    "image-size": "workload.image_size",
}


@dataclass(frozen=True)
class Step:
    """One stage where it belongs in the chain: what it finds, what it says to that, and the outlook around it."""

    number: int  # in the file
    technique: Technique
    layers: LayerTable  # of the module or of the file, whichever it changes
    refusals: tuple[Refusal, ...]
    before: Outlook
    after: Outlook


@dataclass(frozen=True)
class Case:
    """Everything that a check may look at."""

    draft: Draft
    request: Request  # settled
    knowledge: Knowledge
    target: Target
    predictor: Predictor
    verdicts: Verdicts
    steps: tuple[Step, ...]  # in legal order, which need not be the file's

    @property
    def ids(self) -> tuple[str, ...]:
        """The techniques that apply, in legal order."""
        return tuple(step.technique.id for step in self.steps if not step.refusals)

    @property
    def outlook(self) -> Outlook:
        """What the whole chain is expected to give."""
        return self.steps[-1].after if self.steps else self.predictor.baseline


def case_of(draft: Draft, allow_code: bool) -> tuple[Case | None, list[Finding]]:
    """The plan judged against its model and target; None where one of them cannot be had, which is a finding too."""
    found: list[Finding] = []
    plan = draft.plan
    knowledge = _knowledge(plan, found)
    target = _target(plan, knowledge, found)
    layers = _layers(plan, allow_code, found)
    if target is None or layers is None:
        return None, found
    request = _settled(request_of(plan), layers, target, found)
    predictor = Predictor(
        layers, target, request.workload, knowledge, request.task or "", request.model, all_evidence()
    )
    own = sum(row.model == request.model for row in own_evidence())
    verdicts = judge(knowledge, facts_of(request, predictor, own), predictor)
    return Case(draft, request, knowledge, target, predictor, verdicts, _steps(draft.techniques, predictor)), found


def request_of(plan: Plan) -> Request:
    """The question that a plan answers. What it may train with is what its data allow."""
    budget, workload = plan.budget, plan.workload
    given: dict[str, Any] = {
        "model": plan.model,
        "arch": plan.arch,
        "task": plan.task,
        "target": plan.target,
        "goal": plan.goal if plan.goal in GOALS else "",
        "max_drop": budget.max_drop.amount,
        "max_drop_unit": budget.max_drop.unit,
        "max_size_bytes": budget.max_size_bytes,
        "max_latency_ms": budget.max_latency_ms,
        "max_memory_bytes": budget.max_memory_bytes,
        "min_speedup": budget.min_speedup,
        "training": "full",
        "data_level": data_level(plan),
        "data": plan.data,
        "metric": plan.metric,
        "knowledge": plan.knowledge,
        "seed": plan.seed,
        **workload.model_dump(),
    }
    return Request.model_validate({name: value for name, value in given.items() if value not in (None, "")})


def data_level(plan: Plan) -> str:
    """The best data that the plan's files hold; the zoo's models bring their own."""
    if not any(plan.data.values()):
        return "labeled" if plan.model.startswith("zoo:") else "none"
    return "labeled" if plan.data.get("train") else "calibration"


# -- model and target ------------------------------------------------------------------------------


def _knowledge(plan: Plan, found: list[Finding]) -> Knowledge:
    try:
        return load_knowledge(plan.knowledge or None)
    except InputError as error:
        found.append(from_error(error, "knowledge", "names"))
        return load_knowledge()


def _target(plan: Plan, knowledge: Knowledge, found: list[Finding]) -> Target | None:
    """The target; None where it is unknown. One that is not named at all was reported when the file was read."""
    if not plan.target:
        return None
    try:
        return knowledge.target(plan.target)
    except InputError as error:
        found.append(from_error(error, "target", "names"))
        return None


def _layers(plan: Plan, allow_code: bool, found: list[Finding]) -> LayerTable | None:
    """The model's table; None where it cannot be had."""
    if not plan.model:
        return None
    if is_factory(plan.model) and not allow_code:
        error = InputError("model", plan.model, "is code, which is not run unasked", "add --allow-code if you trust it")
        note = from_error(error, "model", "model", level="note")
        found.append(note.model_copy(update={"why": "what depends on the model was not checked"}))
        return None
    for workload in (plan.workload, plan.workload.model_copy(update={"image_size": None})):
        try:
            return profile_source(plan.model, arch=plan.arch or None, task=plan.task or None, workload=workload)
        except InputError as error:
            found.append(from_error(error, FIELDS.get(error.field, error.field), "model"))
            if error.field != "image-size":
                return None
    return None


def _settled(request: Request, layers: LayerTable, target: Target, found: list[Finding]) -> Request:
    """The request as the model and the target settle it; what contradicts them is reported and left out."""
    try:
        return request.settled(layers.info, target)
    except InputError as error:
        drop = error.field == "max-drop"
        patch = Patch(action="set", at=("budget", "max_drop", "unit"), value="%") if drop else None
        found.append(from_error(error, FIELDS.get(error.field, error.field), "request", patch))
        without = {"max_drop_unit": "%"} if drop else {"seq_len": None}
        return _settled(request.model_copy(update=without), layers, target, found)


# -- the chain -------------------------------------------------------------------------------------


def legal_order(techniques: Mapping[int, Technique], pairs: Collection[tuple[str, str]] = ()) -> list[int]:
    """Stage numbers in the order of levels, phases and `pairs` (first, then), recoveries behind what they follow.

    A recovery that stands where nothing can be trained any more, or before anything was lost, goes behind the last
    stage that loses something in the torch model; where there is none it is left out. So is a stage of a kind of which
    a plan has one, where there is another before it.
    """

    def place(number: int) -> tuple[bool, float, int]:
        technique = techniques[number]
        earlier = sum((techniques[other].id, technique.id) in pairs for other in techniques)
        return technique.level is Level.GRAPH, float(technique.phase or 0), earlier

    staged = sorted((n for n in sorted(techniques) if techniques[n].phase is not None), key=place)
    phases = [techniques[n].phase for n in staged]
    staged = [n for i, n in enumerate(staged) if phases[i] not in ONCE or phases[i] not in phases[:i]]
    lossy = [n for n in staged if techniques[n].level is Level.MODEL and not techniques[n].lossless]
    followers: dict[int, list[int]] = {}
    before = None
    for number in sorted(techniques):
        if techniques[number].phase is not None:
            before = number
        elif lossy:
            followers.setdefault(before if before in lossy else lossy[-1], []).append(number)
    return [n for number in staged for n in (number, *followers.get(number, ()))]


def _steps(techniques: Mapping[int, Technique], predictor: Predictor) -> tuple[Step, ...]:
    """Every stage on what the ones before it leave; one that does not apply changes nothing."""
    layers, files = predictor.layers, predictor.baseline.layers
    chain: list[Technique] = []
    steps: list[Step] = []
    outlook = predictor.baseline
    for number in legal_order(techniques):
        technique, before = techniques[number], outlook
        table = files if technique.level is Level.GRAPH else layers
        refusals = tuple(technique.refusals(table))
        if not refusals:
            try:
                layers, files = after(technique, layers, files)
            except InputError as error:  # such as a student that no shape comes near
                refusals = (_refusal(technique, error),)
            else:
                chain.append(technique)
                outlook = predictor.outlook(chain, files)
        steps.append(Step(number, technique, table, refusals, before, outlook))
    return tuple(steps)


def _refusal(technique: Technique, error: InputError) -> Refusal:
    return Refusal(
        technique=technique.id,
        rule="technique-impossible",
        observed=error.problem,
        required="parameters that this model can take",
        remedy=error.remedy,
    )

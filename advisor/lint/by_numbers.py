"""Checks on what the stages do to this model in numbers: applicability, gain, widths, embeddings, speed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import numpy as np

from advisor.lint.by_rules import fixed_values, from_rule, refused_by_rule, warns_of
from advisor.lint.case import Case, Step
from advisor.lint.findings import Finding, Patch, Path, said
from advisor.rules import LEAST_GAIN
from advisor.units import ratio_text
from knowledge.schema import Rule
from knowledge.techniques.base import Family

ARITHMETIC = "arithmetic on this model's layers"
NO_SPEEDUP = 1.05
QUANTIZED_BITS = 8
SWITCH = "embeddings"  # parameter of techniques that may leave them alone


def applies(case: Case) -> Iterator[Finding]:
    """Stages that cannot change the model as they find it."""
    by_rule = refused_by_rule(case)
    for step in case.steps:
        if step.refusals and step.technique.id not in by_rule:
            no, name = step.refusals[0], step.technique.id
            patch = _milder(case, step) or Patch(action="drop", at=("stages", step.number), value=name)
            fix = no.remedy or "leave the stage out"
            if patch.action == "set":
                fix = f"take {patch.value:g}"
            source = no.source or f"{name}'s own requirement"
            yield said("error", patch.at, f"{name}: {no.observed}", f"it needs {no.required}", fix, source, patch)


def _milder(case: Case, step: Step) -> Patch | None:
    """The nearest strength that this model can take, where the technique has a dial and there is one."""
    known = case.verdicts.settings.get(step.technique.id, ())
    options = [t for t in known if t.dial and not any(t.refusals(step.layers))]
    if not options:
        return None
    nearest = min(options, key=lambda t: abs(t.strength() - step.technique.strength()))
    at: Path = ("stages", step.number, "params", nearest.dial)
    return Patch(action="set", at=at, value=getattr(nearest, nearest.dial))


def gains_nothing(case: Case) -> Iterator[Finding]:
    """Lossy stages that change hardly a byte nor a millisecond of the file where they stand."""
    by_rule = refused_by_rule(case)
    for step in case.steps:
        technique = step.technique
        unknown = technique.strength() == 0  # until the weights are read
        if step.refusals or technique.lossless or technique.phase is None or unknown or technique.id in by_rule:
            continue
        smaller, faster = step.before.bytes / step.after.bytes, step.before.latency.total / step.after.latency.total
        if smaller <= LEAST_GAIN and faster <= LEAST_GAIN:
            at: Path = ("stages", step.number)
            observed = f"{technique.id} makes the file {ratio_text(smaller)} smaller and {ratio_text(faster)} faster"
            why = "it costs quality for less than 2 % of size or speed"
            patch = Patch(action="drop", at=at, value=technique.id)
            yield said("warning", at, observed, why, "leave the stage out", ARITHMETIC, patch)


def widths_off_block(case: Case) -> Iterator[Finding]:
    """Convolutions left at widths that the target computes as the next whole block of channels."""
    origin = case.target.channel_block
    if origin is None:
        return
    block = int(origin.value)
    for step in case.steps:
        grid = getattr(step.technique, "round_to", None)
        if step.refusals or grid is None:
            continue
        table = step.technique.effect(step.layers)
        convs = (table.kind == "conv") & (table.groups == 1)
        off, all_convs = int(np.sum(table.outputs[convs] % block != 0)), int(convs.sum())
        if off:
            at: Path = ("stages", step.number, "params", "round_to")
            patch = Patch(action="set", at=at, value=block) if grid % block else None
            observed = (
                f"{step.technique.id} leaves {off} of {all_convs} convolutions between blocks of {block} channels"
            )
            why = f"{case.target.id} computes {block} channels at once: others cost as much as the next whole block"
            yield said("warning", at, observed, why, f"round widths to {block}", origin.source, patch)


def wide_embeddings(case: Case) -> Iterator[Finding]:
    """Embeddings that stay in 32 bits though a rule finds them heavy, while other layers are quantized.

    Where the rule sets a switch of the technique itself, `settings` says it.
    """
    files = case.outlook.layers
    embeddings = (files.kind == "embedding") & files.owned
    quantized = files.bits[~embeddings].min(initial=32) <= QUANTIZED_BITS
    heavy = next((rule for rule in case.verdicts.fired if _switched(rule)), None)
    if heavy is None or not quantized or not embeddings.any() or files.bits[embeddings].max() < 32:
        return
    step = [s for s in case.steps if s.technique.family is Family.QUANTIZE and not s.refusals][-1]
    if step.technique.id in _switched(heavy) or fixed_values(case).get((step.technique.id, SWITCH)) is False:
        return
    share = 100 * files.row_bytes[embeddings].sum() / files.row_bytes.sum()
    observed = f"{step.technique.id} leaves the embeddings in 32 bits: {share:.0f} % of the file that it makes"
    at: Path = ("stages", step.number, "params", SWITCH)
    if isinstance(getattr(step.technique, SWITCH, None), bool):
        patch = Patch(action="set", at=at, value=True)
        yield from_rule(case, heavy, "warning", at, observed, "quantize the embeddings too", patch)
    else:
        fix = "take a quantization that covers embeddings"
        yield from_rule(case, heavy, "warning", ("stages", step.number), observed, fix)


def _switched(rule: Rule) -> set[str]:
    """Techniques whose switch for embeddings a rule puts on."""
    said = [c.set for c in rule.then if c.set is not None and c.set.param == SWITCH]
    return {s.technique for s in said if s.start is True or s.value is True}


def speed_not_gained(case: Case) -> Iterator[Finding]:
    """A plan for speed whose chain is not expected to be faster on its target."""
    request, speedup = case.request, case.outlook.speedup
    wanted = request.goal in ("latency", "throughput") or request.min_speedup or request.max_latency_ms
    if not wanted or not case.ids or speedup >= NO_SPEEDUP:
        return
    observed = f"{' → '.join(case.ids)}: {ratio_text(speedup)} as fast is expected on {case.target.id}"
    command = shlex.join(["advisor", "recommend", request.model, "--target", request.target, "--goal", "latency"])
    fix = f"see `{command}`"
    rule = next((r for r in case.verdicts.fired if any(warns_of(r, name) for name in case.ids)), None)
    if rule is not None:
        yield from_rule(case, rule, "warning", ("goal",), observed, fix)
    else:
        yield said("warning", ("goal",), observed, "the plan asks for speed", fix, f"roofline of {case.target.id}")

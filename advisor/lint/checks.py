"""Every check there is, listed by hand, with the sentence of a seed that asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from advisor.lint import by_file, by_limits, by_numbers, by_rules, by_training
from advisor.lint.case import Case, case_of
from advisor.lint.findings import Finding, sorted_findings
from advisor.lint.read import Draft

S2 = "Model Compression: Pruning + Distillation, Avoid Common Pitfalls"
MISTAKES = "Model Compression Techniques, Common Mistakes to Avoid"
CRITERIA = "Model Compression Techniques, Success Criteria"
PART_4 = "Model Compression Techniques, Part 4"
S4 = "Model Compression Strategies, Best Practices and Common Pitfalls"


@dataclass(frozen=True)
class FileCheck:
    """A check of what the file says; where the model could not be had, there is no case."""

    id: str
    find: Callable[[Draft, Case | None], Iterator[Finding]]
    seed: str = ""  # who asks for it; empty: this tool


@dataclass(frozen=True)
class ModelCheck:
    """A check of what the plan does to its model on its target."""

    id: str
    find: Callable[[Case], Iterator[Finding]]
    seed: str = ""


FILE_CHECKS = (
    FileCheck("order", by_file.order, f"{PART_4}: quantization last"),
    FileCheck("names", by_file.names),
    FileCheck("code", by_file.code),
    FileCheck("data", by_file.data, f"{S2}: Use representative calibration data"),
    FileCheck("threads", by_file.threads),
    FileCheck("quality-budget", by_file.quality_budget, f"{CRITERIA}: acceptable quality loss (<5pp for most tasks)"),
    FileCheck("cannot-run", by_file.cannot_run),
    FileCheck("trains-nothing", by_file.trains_nothing, f"{MISTAKES}: Skip fine-tuning to save time"),
    FileCheck("too-much-at-once", by_file.too_much_at_once, f"{S4}: Don't compress too much at once"),
)
MODEL_CHECKS = (  # where a rule speaks through several, the first is kept
    ModelCheck("refused", by_rules.refused, f"{MISTAKES}: Unstructured pruning speeds up inference"),
    ModelCheck("advised-against", by_rules.advised_against, f"{MISTAKES}: Pruning works for all architectures"),
    ModelCheck("warned", by_rules.warned),
    ModelCheck("setting", by_rules.settings, f"{MISTAKES}: More compression is always better"),
    ModelCheck("required", by_rules.required, f"{MISTAKES}: Always include recovery step"),
    ModelCheck("another-chain", by_rules.another_chain, "Model Compression Techniques, When NOT to use"),
    ModelCheck("applies", by_numbers.applies, f"{CRITERIA}: Selected appropriate technique for architecture"),
    ModelCheck("gains-nothing", by_numbers.gains_nothing),
    ModelCheck("widths-off-block", by_numbers.widths_off_block, f"{CRITERIA}: structured pruning (actual speedup)"),
    ModelCheck("wide-embeddings", by_numbers.wide_embeddings),
    ModelCheck("speed-not-gained", by_numbers.speed_not_gained, f"{MISTAKES}: No speedup on standard hardware"),
    ModelCheck("deployment-limits", by_limits.deployment_limits, f"{CRITERIA}: Verified deployment constraints"),
    ModelCheck("budget-missed", by_limits.budget_missed, f"{CRITERIA}: Achieved target compression"),
    ModelCheck("stale-estimate", by_limits.stale_estimate),
    ModelCheck("one-technique", by_limits.one_technique, f"{MISTAKES}: Single technique is enough"),
    ModelCheck("teacher-gap", by_training.teacher_gap, f"{S2}: teacher/student size ratio too large"),
    ModelCheck("forward-kl", by_training.forward_kl_for_text, f"{S2}: Using forward KL for generation tasks"),
    ModelCheck(
        "untrained-quantization", by_training.quantized_untrained, f"{MISTAKES}: Quantize and deploy immediately"
    ),
    ModelCheck(
        "better-sibling", by_rules.better_sibling, f"{CRITERIA}: Selected appropriate technique for architecture"
    ),
)


def findings_of(draft: Draft, allow_code: bool) -> tuple[Finding, ...]:
    """Everything that is to say of a plan, the gravest first."""
    case, found = case_of(draft, allow_code)
    found = [*draft.findings, *found]
    for on_file in FILE_CHECKS:
        found += [_signed(f, on_file) for f in on_file.find(draft, case)]
    if case is not None:
        for check in MODEL_CHECKS:
            found += [_signed(f, check) for f in check.find(case)]
    return sorted_findings(found)


def _signed(finding: Finding, check: FileCheck | ModelCheck) -> Finding:
    """The finding with its check's id, and the seed behind the check where it names no source of its own."""
    return finding.model_copy(update={"id": check.id, "source": finding.source or check.seed or "this tool"})

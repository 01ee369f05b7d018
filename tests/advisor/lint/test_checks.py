"""Every check has a plan that it objects to and one that it does not; no mistake of the seeds is overlooked."""

import pytest
from linted import FOLDER, LM, PAIRS, SPARSE, plan

from advisor.lint.checks import FILE_CHECKS, MODEL_CHECKS

SEEDS = [
    ("S2 pitfall", "Bad: Pruning without calibration data", "refused", plan("wanda", model=FOLDER, target=SPARSE)),
    ("S2 pitfall", "Bad: Distilling with teacher/student size ratio too large", "teacher-gap", PAIRS["teacher-gap"][0]),
    ("S2 pitfall", "Bad: Using forward KL for generation tasks", "forward-kl", PAIRS["forward-kl"][0]),
    ("S3 mistake", "Pruning works for all architectures", "advised-against", PAIRS["advised-against"][0]),
    ("S3 mistake", "More compression is always better", "setting", PAIRS["setting"][0]),
    ("S3 mistake", "Unstructured pruning speeds up inference", "refused", PAIRS["refused"][0]),
    ("S3 mistake", "Quantize and deploy immediately", "untrained-quantization", PAIRS["untrained-quantization"][0]),
    ("S3 mistake", "Single technique is enough", "one-technique", PAIRS["one-technique"][0]),
    ("S3 mistake", "Skip fine-tuning to save time", "required", PAIRS["required"][0]),
    ("S3 mistake", "Skip fine-tuning to save time", "trains-nothing", PAIRS["trains-nothing"][0]),
    ("S3 criterion", "Selected appropriate technique for architecture", "better-sibling", PAIRS["better-sibling"][0]),
    ("S3 criterion", "Selected appropriate technique for architecture", "applies", PAIRS["applies"][0]),
    ("S3 criterion", "Matched student capacity to compression target (2-4× per stage)", "setting", PAIRS["setting"][0]),
    ("S3 criterion", "Used structured pruning for standard hardware", "refused", PAIRS["refused"][0]),
    ("S3 criterion", "Used structured pruning for standard hardware", "widths-off-block", PAIRS["widths-off-block"][0]),
    ("S3 criterion", "Applied iterative/progressive compression", "too-much-at-once", PAIRS["too-much-at-once"][0]),
    ("S3 criterion", "Included accuracy recovery (QAT, fine-tuning, calibration)", "required", PAIRS["required"][0]),
    ("S3 criterion", "Achieved target compression", "budget-missed", PAIRS["budget-missed"][0]),
    ("S3 criterion", "acceptable quality loss (<5pp for most tasks)", "quality-budget", PAIRS["quality-budget"][0]),
    ("S3 criterion", "Verified deployment constraints", "deployment-limits", PAIRS["deployment-limits"][0]),
    ("S3 part 4", "assert quantized_size <= 100", "deployment-limits", PAIRS["deployment-limits"][0]),
    ("S3 part 4", "assert quantized_acc >= original_acc - 5", "quality-budget", PAIRS["quality-budget"][0]),
    ("S3 part 4", "Quantization (reduce precision last)", "order", PAIRS["order"][0]),
    ("S3 when not", "Model already fits deployment constraints", "another-chain", PAIRS["another-chain"][0]),
    ("S4 practice", "Try INT8 first, if not good then try INT4", "advised-against", plan("gptq", model=LM)),
    ("S4 practice", "Static quantization requires representative data", "data", plan("int8_static", model=FOLDER)),
    ("S4 practice", "Don't compress too much at once", "too-much-at-once", PAIRS["too-much-at-once"][0]),
    ("S4 practice", "Focus on both accuracy and latency", "speed-not-gained", PAIRS["speed-not-gained"][0]),
]


@pytest.mark.parametrize("check", PAIRS)
def test_every_check_objects_to_one_plan_and_not_to_another(check, lint):
    wrong, right = PAIRS[check]
    assert check in {f.id for f in lint(wrong)}
    assert check not in {f.id for f in lint(right)}


def test_no_check_is_left_out():
    assert {c.id for c in (*FILE_CHECKS, *MODEL_CHECKS)} - {"cannot-run"} <= set(PAIRS)
    assert {check for _, _, check, _ in SEEDS} <= set(PAIRS)


def test_a_technique_that_does_not_run_here_is_said(lint, monkeypatch):
    from advisor import readiness

    missing = lambda name: None if name == "torch_pruning" else object()  # noqa: E731
    monkeypatch.setattr(readiness.importlib.util, "find_spec", missing)
    found = [f for f in lint(plan("channels", "finetune")) if f.id == "cannot-run"]
    assert [f.where for f in found] == ["stages[0]"]
    assert "torch_pruning" in found[0].observed


@pytest.mark.parametrize(("seed", "sentence", "check", "raw"), SEEDS, ids=[f"{s}: {t}" for s, t, _, _ in SEEDS])
def test_every_mistake_and_criterion_of_the_seeds_has_its_check(seed, sentence, check, raw, lint):
    found = [f for f in lint(raw) if f.id == check]
    assert found, sentence
    assert all(f.source and f.fix and f.observed for f in found)

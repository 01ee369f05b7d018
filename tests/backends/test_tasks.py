"""Metrics against slow references, losses, and what a task refuses."""

import math
import textwrap

import numpy as np
import pytest
import torch

from backends import metrics
from backends.data import Split
from backends.tasks import reference_outputs, task_for
from knowledge.tasks import METRICS, TASKS
from knowledge.values import InputError

RNG = np.random.default_rng(0)


def fixed(outputs):
    """A model that gives these outputs, batch after batch."""
    place = {"at": 0}

    def predict(batch):
        count = len(next(iter(batch.values())))
        start = place["at"] % len(outputs)
        place["at"] += count
        return outputs[start : start + count]

    return predict


def split(count, labels=None):
    return Split({"x": np.zeros((count, 1), np.float32)}, labels)


def test_every_task_has_a_default_metric():
    for name in METRICS:
        task = task_for(name)
        assert task.name == name
        assert task.metric
        assert task.unit in ("pp", "%")


def test_accuracy_and_f1():
    outputs = RNG.standard_normal((70, 4)).astype(np.float32)
    labels = RNG.integers(0, 4, 70)
    right = sum(max(range(4), key=lambda c: row[c]) == label for row, label in zip(outputs, labels, strict=True))
    quality = task_for("image-classification").evaluate(fixed(outputs), split(70, labels))
    assert quality.value == pytest.approx(right / 70)
    assert (quality.metric, quality.unit, quality.higher_is_better) == ("accuracy", "pp", True)
    from sklearn.metrics import f1_score

    quality = task_for("text-classification", "f1").evaluate(fixed(outputs), split(70, labels))
    assert quality.value == pytest.approx(f1_score(labels, outputs.argmax(1), average="macro"))


def test_f1_leaves_out_classes_that_never_occur():
    assert metrics.macro_f1(np.eye(4)[[0, 1]], np.array([0, 1])) == 1.0


def test_perplexity_counts_unmasked_shifted_tokens():
    logits = RNG.standard_normal((5, 6, 7)).astype(np.float32)
    labels = RNG.integers(0, 7, (5, 6))
    labels[0, 3:] = -100
    losses = []
    for row, wanted in zip(logits, labels, strict=True):
        for t in range(5):
            if wanted[t + 1] != -100:
                losses.append(math.log(np.exp(row[t].astype(float)).sum()) - row[t][wanted[t + 1]])
    task = task_for("causal-lm")
    quality = task.evaluate(fixed(logits), split(5, labels))
    assert quality.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert (quality.unit, quality.higher_is_better) == ("%", False)
    loss = task.loss(torch.from_numpy(logits), {"labels": torch.from_numpy(labels)})
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_broken_language_model_has_a_finite_perplexity():
    logits = np.full((2, 4, 3), np.nan, dtype=np.float32)
    value = task_for("causal-lm").evaluate(fixed(logits), split(2, np.ones((2, 4), np.int64))).value
    assert math.isfinite(value)
    assert value > 1e20


def test_cosine_needs_the_original():
    outputs, reference = RNG.standard_normal((2, 40, 8)).astype(np.float32)
    task = task_for("embedding")
    assert task.needs_reference
    by_hand = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(outputs, reference, strict=True)]
    assert task.evaluate(fixed(outputs), split(40), reference).value == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert task.evaluate(fixed(reference), split(40), reference).value == pytest.approx(1.0)
    with pytest.raises(ValueError, match="original"):
        task.evaluate(fixed(outputs), split(40))
    broken = np.full_like(outputs, np.nan)
    assert task.evaluate(fixed(broken), split(40), reference).value == 0.0


def test_spearman_on_pairs():
    from scipy.stats import spearmanr

    vectors = RNG.standard_normal((40, 8)).astype(np.float32)
    scores = np.round(RNG.random(20) * 5).astype(np.float32)  # with ties
    left, right = vectors[::2], vectors[1::2]
    cosines = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    quality = task_for("embedding", "spearman").evaluate(fixed(vectors), split(40, np.repeat(scores, 2)))
    assert quality.value == pytest.approx(spearmanr(cosines, scores)[0], abs=1e-6)
    assert metrics.spearman(np.ones(5), np.arange(5.0)) == 0.0


def test_fidelity_to_the_original():
    reference = RNG.standard_normal((50, 6)).astype(np.float32)
    other = reference + RNG.standard_normal((50, 6)).astype(np.float32)
    agreement = task_for("fidelity").evaluate(fixed(other), split(50), reference)
    assert agreement.value == pytest.approx(np.mean(other.argmax(1) == reference.argmax(1)))
    p = np.exp(reference) / np.exp(reference).sum(1, keepdims=True)
    q = np.exp(other) / np.exp(other).sum(1, keepdims=True)
    kl = task_for("fidelity", "kl").evaluate(fixed(other), split(50), reference)
    assert kl.value == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-4)
    assert not kl.higher_is_better
    perfect = task_for("fidelity", "kl").evaluate(fixed(reference), split(50), reference)
    assert kl.drop_from(perfect) == pytest.approx(100 * kl.value, rel=1e-4)


def test_reference_outputs_are_concatenated_in_order():
    outputs = RNG.standard_normal((75, 3)).astype(np.float32)
    np.testing.assert_array_equal(reference_outputs(fixed(outputs), split(75)), outputs)


def test_pair_loss_is_zero_when_cosines_are_right():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
    loss = task_for("embedding").loss(vectors, {"labels": torch.tensor([0.0, 0.0, 1.0, 1.0])})
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_nothing_to_judge_or_train_on():
    with pytest.raises(InputError, match="no samples to judge on"):
        task_for("image-classification").evaluate(fixed(np.zeros((0, 2))), split(0, np.zeros(0, np.int64)))
    with pytest.raises(InputError, match="accuracy needs labels"):
        task_for("image-classification").evaluate(fixed(np.zeros((3, 2))), split(3))
    with pytest.raises(InputError, match="no labels to train on"):
        task_for("image-classification").loss(torch.zeros(3, 2), {})


def test_unknown_names_get_the_nearest():
    with pytest.raises(InputError, match=r"task: image-clasification: unknown task; did you mean image-classification"):
        task_for("image-clasification")
    with pytest.raises(
        InputError, match=r"unknown metric for causal-lm; did you mean perplexity\? \(or module:function\)"
    ):
        task_for("causal-lm", "perplexty")
    with pytest.raises(InputError, match="known: accuracy, f1"):
        task_for("image-classification", "zzz")


USERS = """
    def count(outputs, labels):
        return float((outputs.argmax(1) == labels).sum())
    count.higher_is_better = True
    count.unit = "pp"
    def cost(outputs, labels): return -1.5
    cost.higher_is_better = False
    def fails(outputs, labels): raise KeyError("x")
    def nan(outputs, labels): return float("nan")
    def odd(outputs, labels): return 1.0
    odd.unit = "kg"
"""


def test_the_users_own_metric(tmp_path, monkeypatch):
    (tmp_path / "zoo_metrics.py").write_text(textwrap.dedent(USERS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    outputs, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 0])
    task = task_for("image-classification", "zoo_metrics:count")
    quality = task.evaluate(fixed(outputs), split(3, labels))
    assert (quality.value, quality.metric, quality.unit) == (2.0, "zoo_metrics:count", "pp")
    quality = task_for("image-classification", "zoo_metrics:cost").evaluate(fixed(outputs), split(3, labels))
    assert (quality.value, quality.higher_is_better, quality.unit) == (-1.5, False, "%")
    for name, problem in (("fails", "failed: KeyError"), ("nan", "returned nan")):
        with pytest.raises(InputError, match=problem):
            task_for("image-classification", f"zoo_metrics:{name}").evaluate(fixed(outputs), split(3, labels))
    with pytest.raises(InputError, match="its unit is 'kg'"):
        task_for("image-classification", "zoo_metrics:odd")
    with pytest.raises(InputError, match="cannot be imported"):
        task_for("image-classification", "zoo_nothing:f")


def test_planning_counts_losses_as_the_default_metrics_do():
    assert set(METRICS) == set(TASKS)
    assert {name: task_for(name).unit for name in METRICS} == {name: unit for name, (_, unit) in TASKS.items()}

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from backends.data import Split
from backends.losses import masked_mean, soft_loss, vector_loss
from backends.training import TeacherOutputs, batch_size_for, one_cycle, shuffled, tensors, thinned, train
from knowledge.values import InputError, RunFailed


def soft_loss_by_loops(student, teacher, temperature, mask):
    found = []
    for index in np.ndindex(*student.shape[:-1]):
        if mask is None or mask[index]:
            p = np.exp(teacher[index] / temperature) / np.exp(teacher[index] / temperature).sum()
            q = np.exp(student[index] / temperature) / np.exp(student[index] / temperature).sum()
            found.append(float((p * np.log(p / q)).sum()))
    return temperature**2 * sum(found) / len(found)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 6.0])
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 7)])
def test_soft_loss_agrees_with_loops(temperature, shape):
    torch.manual_seed(0)
    student, teacher = torch.randn(shape).double(), torch.randn(shape).double()
    mask = (torch.rand(shape[:-1]) > 0.4).long() if len(shape) == 3 else None
    expected = soft_loss_by_loops(student.numpy(), teacher.numpy(), temperature, None if mask is None else mask.numpy())
    assert float(soft_loss(student, teacher, temperature, mask)) == pytest.approx(expected, rel=1e-5)


def test_soft_loss_does_not_grow_with_length():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    once = soft_loss(student, teacher, 2.0)
    assert float(soft_loss(student.repeat(1, 9, 1), teacher.repeat(1, 9, 1), 2.0)) == pytest.approx(
        float(once), rel=1e-5
    )
    assert float(soft_loss(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)


def test_gradients_keep_their_size_over_temperatures():
    """T² makes up for the 1/T² of softened gradients (arXiv:1503.02531): far above the logits it cancels."""
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5)
    sizes = [float(torch.autograd.grad(soft_loss(student, teacher, t), student)[0].norm()) for t in (20.0, 40.0)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_vectors_and_masks():
    assert float(vector_loss(torch.eye(3), 2 * torch.eye(3))) == pytest.approx(0, abs=1e-6)
    assert float(masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1, 1, 0]))) == 1.5
    assert float(masked_mean(torch.ones(3), torch.zeros(3))) == 0


def test_every_sample_once_an_epoch_in_a_new_order_by_seed():
    batches = list(shuffled(21, 5, 2, seed=3))
    assert sorted(np.concatenate(batches[:4]).tolist()) == list(range(21))
    assert [len(b) for b in batches[:4]] == [5, 5, 5, 6]  # batch norm cannot take a batch of one
    assert not np.array_equal(batches[0], batches[4])
    again = list(shuffled(21, 5, 2, seed=3))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not np.array_equal(next(shuffled(21, 5, 2, seed=4)), batches[0])


def test_shared_padding_is_cut_off():
    split = Split(
        {"input_ids": np.ones((4, 9), np.int64), "attention_mask": np.zeros((4, 9), np.int64)},
        np.ones((4, 9), np.int64),
    )
    split.inputs["attention_mask"][1, :3] = 1
    split.inputs["attention_mask"][2, :5] = 1
    batch = tensors(split, np.array([1, 2]), torch.device("cpu"))
    assert {name: tuple(v.shape) for name, v in batch.items()} == {
        "input_ids": (2, 5),
        "attention_mask": (2, 5),
        "labels": (2, 5),
    }


def test_batches_are_small():
    assert batch_size_for(Split({"pixels": np.zeros((1000, 1, 8, 8), np.float32)})) == 64
    assert batch_size_for(Split({"input_ids": np.zeros((1000, 128), np.int64)})) == 16
    assert batch_size_for(Split({"pixels": np.zeros((40, 1, 8, 8), np.float32)})) == 5
    assert batch_size_for(Split({"pixels": np.zeros((1, 1, 8, 8), np.float32)})) == 1


def test_the_schedule_rises_and_falls_to_nothing():
    rates = [one_cycle(step, 100) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[10] == 1
    assert rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert one_cycle(0, 1) == 1


def test_curves_are_thinned_to_means():
    points = thinned([float(i) for i in range(1000)])
    assert len(points) == 200
    assert (points[0].step, points[0].loss) == (4, 2.0)
    assert points[-1].step == 999
    assert [p.loss for p in thinned([3.0, 1.0])] == [3.0, 1.0]


@pytest.mark.parametrize("kind", ["cnn", "lstm", "llama", "bert"])
def test_training_follows_its_loss_and_its_seed(kind, small):
    def trained(seed):
        model = getattr(small, kind)() if kind in ("cnn", "lstm") else small.transformer(kind, blocks=2)
        context = small.context(model)
        teacher = small.transformer("bert", blocks=2, ffn=96) if kind == "bert" else None
        curve = train(model, context.task, context.data.train, epochs=6, learning_rate=5e-3, seed=seed, teacher=teacher)
        return curve, small.outputs(model, context.data.train)

    torch.rand(7)  # where the global generator stands does not matter
    first, again, other = trained(1), trained(1), trained(2)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    losses = [point.loss for point in first[0]]
    assert np.mean(losses[-8:]) < 0.95 * np.mean(losses[:8])  # the last epoch against the first


@pytest.mark.parametrize("kind", ["cnn", "llama", "bert"])
def test_teacher_outputs_are_computed_once(kind, small):
    model = small.cnn() if kind == "cnn" else small.transformer(kind, blocks=1)
    split = small.split(model, 12)
    calls = []
    teacher = model.clone()
    forward = teacher.module.forward
    teacher.module.forward = lambda *a, **k: calls.append(1) or forward(*a, **k)
    guide = TeacherOutputs(teacher, len(split), 12, keep=True)
    for order in (np.arange(12), np.arange(12)[::-1].copy()):
        for rows in np.split(order, 3):
            batch = tensors(split, rows, torch.device("cpu"))
            with torch.no_grad():
                expected = model.forward(batch)
            torch.testing.assert_close(guide(rows, batch), expected, atol=1e-5, rtol=1e-5)
    assert len(calls) == 3


def test_outputs_that_do_not_fit_are_computed_again(small, monkeypatch):
    monkeypatch.setattr("backends.training.TEACHER_CACHE_BYTES", 10)
    model = small.cnn()
    guide = TeacherOutputs(model, 40, 1, keep=True)
    split = small.split(model)
    for _ in range(2):
        guide(np.arange(4), tensors(split, np.arange(4), torch.device("cpu")))
    assert guide.kept is None
    assert guide.keep is False


def test_a_student_comes_to_agree_with_its_teacher(small):
    teacher, student = small.cnn(), small.cnn(width=8)
    context = small.context(student)
    split = context.data.train

    def distance():
        return float(soft_loss(small.outputs(student, split), small.outputs(teacher, split), 1.0))

    before = distance()
    train(student, context.task, split, epochs=15, learning_rate=5e-3, teacher=teacher, temperature=2.0, alpha=1.0)
    assert distance() < 0.3 * before


def test_alpha_weighs_the_two_losses(small):
    teacher, student = small.cnn(), small.cnn(width=8)
    context = small.context(student)
    split = context.data.train
    student.module.train()
    batch = tensors(split, np.arange(40), torch.device("cpu"))
    hard = float(F.cross_entropy(student.forward(batch), batch["labels"]))
    with torch.no_grad():
        soft = float(soft_loss(student.forward(batch), teacher.forward(batch), 3.0))
    options = {"epochs": 1, "learning_rate": 1e-9, "batch_size": 40, "teacher": teacher, "temperature": 3.0}
    curve = train(student, context.task, split, alpha=0.25, **options)
    assert curve[0].loss == pytest.approx(0.25 * soft + 0.75 * hard, rel=1e-3)


@pytest.mark.parametrize("rate", [1e30, 1e6])
def test_divergence_is_a_failed_run_that_says_what_to_try(rate, small):
    model = small.transformer("llama", blocks=1)
    context = small.context(model)
    if rate == 1e6:
        model.module.lm_head.weight.data[0, 0] = math.nan
    with pytest.raises(RunFailed, match=r"diverged at step .* learning rate below"):
        train(model, context.task, context.data.train, epochs=3, learning_rate=rate)


def test_nothing_to_learn_from_is_bad_input(small):
    model = small.cnn()
    context = small.context(model)
    split = context.data.train
    with pytest.raises(InputError, match="no labels"):
        train(model, context.task, Split(split.inputs), epochs=1, learning_rate=1e-3)
    with pytest.raises(InputError, match="no samples"):
        train(model, context.task, split.head(0), epochs=1, learning_rate=1e-3)


def test_no_epochs_change_nothing(small):
    model = small.cnn()
    context = small.context(model)
    before = small.outputs(model, context.data.train)
    assert train(model, context.task, context.data.train, epochs=0, learning_rate=1e-3) == ()
    assert torch.equal(small.outputs(model, context.data.train), before)

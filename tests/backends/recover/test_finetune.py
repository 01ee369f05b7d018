import pytest
import torch

from backends.prune.magnitude import apply as prune
from backends.prune.magnitude import zero_masks
from backends.recover.finetune import apply
from backends.structure import load_checkpoint, save
from knowledge.techniques.prune import Magnitude
from knowledge.techniques.recover import Finetune


def test_training_recovers_and_keeps_the_zeros(small):
    model = small.cnn()
    context = small.context(model, small.split(model, 64))
    pruned, _ = prune(Magnitude(ratio=0.8), model, context)
    masks = zero_masks(pruned)
    tuned, decision = apply(Finetune(epochs=6, learning_rate=3e-3), pruned, context)
    losses = [point.loss for point in decision.curve]
    assert losses[-1] < losses[0]
    for name, mask in masks.items():
        assert torch.equal(tuned.module.get_parameter(name) != 0, mask), name


def test_masks_are_read_off_the_weights_after_a_reload(small, monkeypatch, tmp_path):
    model = small.cnn()
    context = small.context(model)
    pruned, decision = prune(Magnitude(ratio=0.6), model, context)
    save(pruned, tmp_path)
    monkeypatch.setattr("backends.structure.load", lambda *_, **__: small.cnn())
    again = load_checkpoint(tmp_path, allow_code=True)
    options = Finetune(epochs=2, learning_rate=1e-3)
    one, other = apply(options, pruned, context)[0], apply(options, again, context)[0]
    for (name, a), b in zip(one.module.named_parameters(), other.module.parameters(), strict=True):
        assert torch.equal(a, b), name
    zeros = sum(int((one.module.get_parameter(n) == 0).sum()) for n in zero_masks(pruned))
    assert zeros >= sum(round((1 - share) * 1) for share in decision.density.values())
    assert all(bool((one.module.get_parameter(n)[~m] == 0).all()) for n, m in zero_masks(again).items())


def test_without_labels_it_follows_the_original(small):
    original = small.transformer("bert", blocks=2)
    model = original.clone()
    with torch.no_grad():
        for p in model.module.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    context = small.context(model, teacher=original)
    split = context.data.train

    def distance():
        return float(1 - torch.cosine_similarity(small.outputs(model, split), small.outputs(original, split)).mean())

    before = distance()
    _, decision = apply(Finetune(epochs=5, learning_rate=1e-3), model, context)
    assert distance() < 0.7 * before
    assert decision.curve[0].loss == pytest.approx(before, rel=0.8)


def test_the_original_is_left_alone(small):
    original = small.transformer("bert", blocks=1)
    model = original.clone()
    before = {n: p.detach().clone() for n, p in original.module.named_parameters()}
    apply(Finetune(epochs=1), model, small.context(model, teacher=original))
    assert all(torch.equal(p, before[n]) for n, p in original.module.named_parameters())

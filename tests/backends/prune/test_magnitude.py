import pytest
import torch

from backends.locate import weight_tensors
from backends.prune.magnitude import apply, kept_globally, kept_locally, smallest, zero_masks
from backends.training import train
from knowledge.techniques.prune import Magnitude


def smallest_by_sorting(scores, count):
    """The obvious way: sort (score, position) pairs and mark the first ones."""
    order = sorted(range(len(scores)), key=lambda i: (float(scores[i]), i))
    return [i in order[:count] for i in range(len(scores))]


@pytest.mark.parametrize("count", [0, 1, 5, 19, 20])
@pytest.mark.parametrize("ties", [False, True])
def test_smallest_agrees_with_sorting(count, ties):
    torch.manual_seed(count)
    scores = torch.randint(0, 4, (20,)).float() if ties else torch.rand(20)
    assert smallest(scores, count).tolist() == smallest_by_sorting(scores, count)


def test_smallest_has_no_limit_on_size():
    scores = torch.ones(2**24 + 10)  # torch.quantile refuses this
    assert int(smallest(scores, 2**23 + 1).sum()) == 2**23 + 1


def test_masks_keep_exactly_the_asked_share():
    torch.manual_seed(0)
    weights = [torch.randn(7, 11), torch.randn(5, 3, 3, 3) * 0.01]
    for kept, w in zip(kept_locally(weights, 0.3), weights, strict=True):
        assert int((~kept).sum()) == round(0.3 * w.numel())
    together = kept_globally(weights, 0.3)
    assert sum(int((~k).sum()) for k in together) == round(0.3 * sum(w.numel() for w in weights))
    assert float(together[1].float().mean()) < 0.6  # the small weights go first


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "bert", "cnn", "lstm"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_decision_holds_what_is_really_zero(kind, scope, small):
    model = getattr(small, kind)() if kind in ("cnn", "lstm") else small.transformer(kind, blocks=2)
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    context = small.context(model)
    technique = Magnitude(scope=scope, ratio=0.4)
    pruned, decision = apply(technique, model, context)
    touched = {name for path in decision.density for name in weight_tensors(pruned.module, path)}
    zeros = sum(int((pruned.module.get_parameter(n) == 0).sum()) for n in touched)
    assert zeros / sum(before[n].numel() for n in touched) == pytest.approx(0.4, abs=1e-3)
    for name, p in pruned.module.named_parameters():
        if name not in touched:
            assert torch.equal(p, before[name]), name
            assert p.dim() == 1 or any(word in name for word in ("embed", "wte", "wpe", "pooler")), name
    for path, share in decision.density.items():
        weights = weight_tensors(pruned.module, path).values()
        assert share == sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert pruned.structure[-1].technique == "magnitude"


def test_mixture_experts_are_pruned(small):
    model = small.transformer("mixtral", blocks=2)
    _, decision = apply(Magnitude(), model, small.context(model))
    assert any("experts" in path for path in decision.density)


def test_a_threshold_prunes_what_is_below_it(small):
    model = small.cnn()
    pruned, decision = apply(Magnitude(threshold=0.05), model, small.context(model))
    weights = torch.cat(
        [w.flatten() for path in decision.density for w in weight_tensors(pruned.module, path).values()]
    )
    assert bool((weights == 0).any())
    assert float(weights[weights != 0].abs().min()) >= 0.05


def test_zeros_survive_training(small):
    model = small.cnn()
    context = small.context(model)
    pruned, _ = apply(Magnitude(ratio=0.7), model, context)
    masks = zero_masks(pruned)
    before = {name: pruned.module.get_parameter(name).detach().clone() for name in masks}
    train(pruned, context.task, context.data.train, epochs=2, learning_rate=1e-2, masks=masks)
    for name, mask in masks.items():
        weight = pruned.module.get_parameter(name)
        assert bool((weight[~mask] == 0).all())
        assert not torch.equal(weight, before[name])


def test_a_model_that_was_never_pruned_trains_without_masks(small):
    assert zero_masks(small.cnn()) == {}

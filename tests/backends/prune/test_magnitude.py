import numpy as np
import pytest
import torch

from backends.locate import weight_tensors
from backends.oneshot.matrices import matrices
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


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_patterns_lie_along_the_inputs_of_dense_layers_and_experts(kind, small):
    model = small.transformer(kind, blocks=2)
    _, decision = apply(Magnitude(pattern="3:8"), model, small.context(model))
    assert decision.pattern == "3:8"
    assert decision.density
    assert set(decision.density.values()) == {3 / 8}
    for path in decision.density:
        for matrix in matrices(model.module, path):
            assert bool(((matrix.read().unflatten(1, (-1, 8)) != 0).sum(-1) == 3).all()), matrix.name


def test_patterns_lie_along_channels_of_convolutions_and_leave_what_they_do_not_divide(small):
    model = small.cnn()
    other = torch.nn.ConvTranspose2d(32, 6, 1)
    model.module.pool = torch.nn.Sequential(other, torch.nn.Conv2d(6, 32, 1), model.module.pool)
    _, decision = apply(Magnitude(pattern="1:4"), model, small.context(model))
    assert {"residual.conv1", "residual.conv2", "pointwise", "pool.0", "fc"} == set(decision.density)
    assert bool(((other.weight.unflatten(0, (-1, 4)) != 0).sum(1) == 1).all())
    weight = model.module.residual.conv1.weight
    assert bool(((weight.unflatten(1, (-1, 4)) != 0).sum(2) == 1).all())


@pytest.mark.parametrize("scope", ["global", "local"])
def test_layers_lose_their_own_ratios_and_the_others_by_scope(scope, small):
    model = small.transformer("llama", blocks=2)
    technique = Magnitude(ratio=0.5, scope=scope, layer_ratios={"layers.0": 0.25})
    context = small.context(model)
    _, decision = apply(technique, model, context)
    own = [share for path, share in decision.density.items() if "layers.0." in path]
    rest = [share for path, share in decision.density.items() if "layers.0." not in path]
    assert own == pytest.approx([0.75] * len(own), abs=0.001)
    assert (max(rest) - min(rest) < 0.001) == (scope == "local")
    after = technique.effect(context.layers, decision)
    others = np.isin(after.path, list(decision.density)) & ~np.array(["layers.0." in path for path in after.path])
    assert np.average(after.density[others], weights=after.weights[others]) == pytest.approx(0.5, abs=0.001)

import numpy as np
import pytest
import torch

from backends.factorize.svd import Decompositions, apply, decompose, rank_for_energy, two_factors
from backends.surgery import FactoredLinear, dense_weight, factored
from knowledge.techniques.factorize import Svd


def test_full_rank_is_the_layer_itself(small):
    model = small.transformer("gpt2", blocks=1)
    layer = model.module.get_submodule("transformer.h.0.mlp.c_fc")
    x = torch.randn(3, 5, 32)
    whole = factored(layer, *two_factors(decompose(dense_weight(layer).detach()), 32))
    torch.testing.assert_close(whole(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_error_is_the_tail_of_the_singular_values(rank):
    torch.manual_seed(0)
    weight = torch.randn(12, 20)
    down, up = two_factors(decompose(weight), rank)
    assert (down.shape, up.shape) == ((rank, 20), (12, rank))
    tail = np.linalg.svd(weight.numpy(), compute_uv=False)[rank:]
    assert float((weight - up @ down).norm()) == pytest.approx(float(np.linalg.norm(tail)), rel=1e-4)


@pytest.mark.parametrize("energy", [0.01, 0.5, 0.9, 0.999])
def test_rank_for_energy_agrees_with_counting(energy):
    s = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5])
    total, held, rank = float((s**2).sum()), 0.0, 0
    while held < energy * total:
        held += float(s[rank]) ** 2
        rank += 1
    assert rank_for_energy(s, energy) == rank


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "mixtral"])
def test_layers_get_smaller_and_the_rest_stays(kind, small):
    model = small.transformer(kind, blocks=2)
    context = small.context(model)
    technique = Svd(ratio=0.5, min_width=16)
    before = sum(p.numel() for p in model.module.parameters())
    changed, decision = apply(technique, model, context)
    assert set(decision.ranks) == set(context.layers.path[technique.touches(context.layers)])
    saved = 0
    for path, rank in decision.ranks.items():
        layer = changed.module.get_submodule(path)
        assert isinstance(layer, FactoredLinear)
        assert layer.rank == rank
        m, n = layer.out_features, layer.in_features
        assert rank == max(1, int(0.5 * m * n / (m + n)))
        saved += m * n - rank * (m + n)
    assert sum(p.numel() for p in changed.module.parameters()) == before - saved
    assert torch.isfinite(small.outputs(changed, context.data.search)).all()


def test_layers_that_would_not_save_are_named(small):
    model = small.transformer("llama", blocks=1)
    context = small.context(model)
    changed, decision = apply(Svd(energy=0.9999, min_width=16), model, context)
    assert decision.ranks == {}
    assert len(decision.skipped) == 7
    assert all("break-even" in r.required for r in decision.skipped)
    assert not any(isinstance(m, FactoredLinear) for m in changed.module.modules())


def test_torchs_own_attention_keeps_the_layers_that_it_reads_itself(small):
    model = small.cnn()
    model.module.body = torch.nn.TransformerEncoderLayer(32, 2, 64)
    paths = ["body.self_attn.out_proj", "body.linear1"]
    table = small.context(small.transformer("llama", blocks=1)).layers.rows()
    rows = [
        next(r for r in table if r["role"] == "ffn_up") | {"path": path, "outputs": 64, "inputs": 32} for path in paths
    ]
    context = small.context(small.cnn())
    layers = type(context.layers).of(rows, context.layers.info)
    _, decision = apply(Svd(min_width=16), model, type(context)(**{**vars(context), "layers": layers}))
    assert decision.ranks == {}
    assert [r.observed.split(":")[0] for r in decision.skipped] == paths


def test_a_decomposition_is_made_once_per_weight_and_forgotten_beyond_the_bound():
    kept = Decompositions(bound_bytes=10_000)
    weight = torch.randn(16, 16)
    assert kept.of(weight)[0] is kept.of(weight.clone())[0]
    first = kept.of(weight)[0]
    for seed in range(5):
        torch.manual_seed(seed)
        kept.of(torch.randn(16, 16))
    assert kept.bytes <= 10_000
    assert kept.of(weight)[0] is not first

import pytest
import torch
from torch import nn

from backends.distill.distill import apply, build
from backends.distill.inherit import choose_heads, head_dims, largest, share, spans
from backends.distill.student import skeleton, spread
from backends.models import LoadedModel
from backends.profile import profile
from backends.structure import rebuild
from knowledge.layers import ModelInfo
from knowledge.students import resize
from knowledge.techniques.distill import Distill
from knowledge.values import InputError, StudentShape

SMALLER = StudentShape(blocks=2, hidden_size=16, ffn_size=24, heads=2, kv_heads=1)
TINY = {"llama": SMALLER, "gpt2": SMALLER.model_copy(update={"kv_heads": 2}), "mixtral": SMALLER}
TINY["bert"] = StudentShape(blocks=2, hidden_size=32, ffn_size=24, heads=4, kv_heads=4)


@pytest.mark.parametrize(
    ("count", "kept", "expected"), [(12, 4, (0, 4, 7, 11)), (6, 3, (0, 3, 5)), (4, 4, (0, 1, 2, 3)), (5, 1, (0,))]
)
def test_blocks_are_evenly_spaced(count, kept, expected):
    assert spread(count, kept) == expected
    assert all(len(set(spread(n, k))) == k for n in range(1, 30) for k in range(1, n + 1))


def test_heads_stay_with_their_groups():
    scores = torch.tensor([1.0, 9.0, 2.0, 3.0, 0.0, 0.5, 8.0, 7.0])  # four groups of two
    queries, keys = choose_heads(scores, 4, 4, 2)
    assert (queries.tolist(), keys.tolist()) == ([0, 1, 6, 7], [0, 3])
    queries, keys = choose_heads(scores, 4, 4, 4)
    assert (queries.tolist(), keys.tolist()) == ([1, 3, 5, 6], [0, 1, 2, 3])
    for kept, groups in ((3, 3), (6, 2), (2, 1), (8, 1)):
        queries, keys = choose_heads(scores, 4, kept, groups)
        assert (len(set(queries.tolist())), len(keys)) == (kept, groups)


def test_rotary_pairs_stay_pairs():
    assert head_dims(32, 32).tolist() == list(range(32))
    kept = head_dims(32, 24)
    assert (kept[:12] + 16).tolist() == kept[12:].tolist()
    assert spans(torch.tensor([0, 2]), 4, torch.tensor([1, 3])).tolist() == [1, 3, 9, 11]


def test_shares_agree_with_loops():
    weight = torch.randn(3, 4, 5)
    for axis in range(3):
        sums = [float(weight.select(axis, i).square().sum()) for i in range(weight.shape[axis])]
        torch.testing.assert_close(share(weight, axis), torch.tensor(sums) / sum(sums))
    assert largest(torch.tensor([1.0, 3.0, 2.0, 3.0]), 2).tolist() == [1, 3]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "mixtral"])
def test_a_student_has_exactly_the_dimensions_it_was_promised(kind, small):
    model = small.transformer(kind)
    context = small.context(model)
    student, _, _ = build(model.clone(), context, TINY[kind])
    target = resize(context.layers, TINY[kind])
    real = profile(student, context.workload)
    assert (real.parameters, real.macs) == (target.parameters, target.macs)
    assert real.path.tolist() == target.path.tolist()
    assert real.info == target.info
    assert torch.isfinite(small.outputs(student, context.data.search)).all()
    again = skeleton(model, TINY[kind])
    assert [tuple(p.shape) for p in again.parameters()] == [tuple(p.shape) for p in student.module.parameters()]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "mixtral"])
def test_a_student_as_large_as_the_model_is_the_model(kind, small):
    model = small.transformer(kind)
    context = small.context(model)
    info = model.info
    same = StudentShape(blocks=4, hidden_size=info.hidden_size, ffn_size=info.ffn_size, heads=4, kv_heads=info.kv_heads)
    student, _, _ = build(model.clone(), context, same)
    assert torch.equal(small.outputs(student, context.data.search), small.outputs(model, context.data.search))


# (end of a parameter's name, axis, units that nobody hears): every second feed-forward unit
SILENT = {
    "llama": [("mlp.down_proj.weight", 1, slice(1, None, 2))],
    "gpt2": [("mlp.c_proj.weight", 0, slice(1, None, 2))],
    "bert": [(".output.dense.weight", 1, slice(1, None, 2))],
    "mixtral": [("experts.down_proj", 2, slice(1, None, 2))],
}


@pytest.mark.parametrize("kind", SILENT)
def test_units_that_nobody_hears_go_first(kind, small):
    """With half of the feed-forward units silenced, the student without them computes the same."""
    model = small.transformer(kind, blocks=2)
    for name, p in model.module.named_parameters():
        for end, axis, units in SILENT[kind]:
            if name.endswith(end) and "attention" not in name:
                with torch.no_grad():
                    p[(slice(None),) * axis + (units,)] = 0
    kv = 2 if kind in ("llama", "mixtral") else 4
    context = small.context(model)
    shape = StudentShape(blocks=2, hidden_size=32, ffn_size=32, heads=4, kv_heads=kv)
    student, _, _ = build(model.clone(), context, shape)
    whole = small.outputs(model, context.data.search)
    torch.testing.assert_close(small.outputs(student, context.data.search), whole, atol=1e-4, rtol=1e-4)


READS = ("embed_tokens", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")


def test_hidden_units_that_nobody_writes_go_first(small):
    """Half of the residual stream is empty: the narrower student hears the same, up to the scale of the norms."""
    model = small.transformer("llama", blocks=2, hidden=32, heads=4)
    empty = slice(16, None)
    with torch.no_grad():
        for name, p in model.module.named_parameters():
            if name.endswith(tuple(f"{module}.weight" for module in READS)):
                p[:, empty] = 0
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                p[empty] = 0
    context = small.context(model)
    shape = StudentShape(blocks=2, hidden_size=16, ffn_size=64, heads=2, kv_heads=1)
    student, _, _ = build(model.clone(), context, shape)
    assert torch.equal(student.module.model.embed_tokens.weight, model.module.model.embed_tokens.weight[:, :16])


@pytest.mark.parametrize("kind", ["cnn", "lstm", "llama", "bert"])
def test_distillation_gives_the_size_asked_for_and_comes_back(kind, small):
    model = getattr(small, kind)() if kind in ("cnn", "lstm") else small.transformer(kind)
    context = small.context(model, teacher=model.clone())
    technique = Distill(compression=1.5, epochs=2)
    before = small.outputs(model, context.data.search)
    student, decision = apply(technique, model, context)
    expected, real = technique.effect(context.layers, decision), profile(student, context.workload)
    assert (expected.parameters, expected.macs, expected.info) == (real.parameters, real.macs, real.info)
    assert real.parameters == pytest.approx(context.layers.parameters / 1.5, rel=0.15)
    assert decision.curve[-1].loss <= decision.curve[0].loss * 1.05
    assert torch.equal(small.outputs(model, context.data.search), before)  # the original is not touched
    source = getattr(small, kind)() if kind in ("cnn", "lstm") else small.transformer(kind)
    again = rebuild(source, [decision])
    again.module.load_state_dict(student.module.state_dict())
    assert torch.equal(small.outputs(again, context.data.search), small.outputs(student, context.data.search))


def test_the_same_seed_gives_the_same_student(small):
    def made():
        model = small.transformer("llama", blocks=2)
        return apply(Distill(compression=1.5, epochs=1), model, small.context(model))

    torch.rand(3)
    (one, first), (other, second) = made(), made()
    assert first == second
    for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(a, b)


class Rooted(nn.Module):
    """A transformer of the user's own, on torch's encoder, with a class token and learned positions."""

    def __init__(self, width=32, heads=4, blocks=4, ffn=64):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 2, 2)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, heads, ffn, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, blocks)
        self.head = nn.Linear(width, 4)

    def forward(self, pixels):
        x = self.stem(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.encoder(x)[:, 0])


def rooted(small):
    torch.manual_seed(0)
    facts = {"hidden_size": 32, "ffn_size": 64, "heads": 4, "kv_heads": 4, "head_dim": 8, "blocks": 4}
    info = ModelInfo("own", "transformer", "image-classification", classes=4, image_size=(1, 8, 8), **facts)
    return LoadedModel(Rooted().eval(), info, small.cnn().inputs, "tensor", "tests:rooted")


def test_a_transformer_of_the_users_own_is_cut_and_rebuilt(small):
    model = rooted(small)
    context = small.context(model)
    student, decision = apply(Distill(compression=2.0, epochs=1), model.clone(), context)
    expected = Distill().effect(context.layers, decision)
    assert profile(student, context.workload).parameters == expected.parameters
    again = rebuild(rooted(small), [decision])
    again.module.load_state_dict(student.module.state_dict())
    split = context.data.search
    torch.testing.assert_close(small.outputs(again, split), small.outputs(student, split))


class Stubborn(Rooted):
    def forward(self, pixels):
        return super().forward(pixels) + torch.zeros(1, 17, 32).sum() + self.head.weight.view(4, 32).sum() * 0


def test_code_that_fixes_its_widths_is_refused_in_one_line(small):
    model = rooted(small)
    model.module = Stubborn().eval()
    with pytest.raises(InputError, match=r"distill: Stubborn: no student .* use channels, layer_drop or svd"):
        apply(Distill(compression=2.0, epochs=1), model, small.context(model))

"""The profile of a torch model against counting its parameters and its multiplications one by one."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from backends.models import InputSpec, LoadedModel, load
from backends.profile import profile
from backends.surgery import empty_factors, replace_module
from backends.zoo import zoo_names
from backends.zoo.networks import DepthwiseNet, DigitsLSTM, DigitsViT, ResidualNet
from backends.zoo.tables import TABLES, packaged
from knowledge.deploy import deployed
from knowledge.layers import LayerTable, ModelInfo, table_from_json, table_to_json
from knowledge.students import resize, solve_student
from knowledge.techniques.reshape import LayerDrop
from knowledge.values import Decision, Workload

PIXELS = (InputSpec("pixels", "float32", ("batch", 1, 8, 8)),)
TRANSFORMERS = ("llama", "gpt2", "bert", "mixtral")


def own(module, family, task="image-classification", inputs=PIXELS, **facts):
    torch.manual_seed(0)
    return LoadedModel(module.eval(), ModelInfo("own", family, task, **facts), inputs, "tensor", "tests:own")


def count(model):
    """Parameters by a loop over distinct tensors."""
    seen, total = set(), 0
    for parameter in model.module.parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            total += parameter.numel()
    return total


def digits(name):
    """The zoo's networks with random weights."""
    sequence = (InputSpec("sequence", "float32", ("batch", "sequence", 8)),)
    return {
        "cnn": lambda: own(ResidualNet(), "cnn", classes=10),
        "dwcnn": lambda: own(DepthwiseNet(), "cnn", classes=10),
        "lstm": lambda: own(DigitsLSTM(), "rnn", "sequence-classification", sequence, classes=10, max_length=8),
        "vit": lambda: own(vit := DigitsViT(), "transformer", classes=10, **vit.facts()),
    }[name]()


@pytest.fixture(params=["cnn", "dwcnn", "lstm", "vit", *TRANSFORMERS, "small-cnn", "small-lstm"])
def model(request, small):
    if request.param in TRANSFORMERS:
        return small.transformer(request.param)
    if request.param.startswith("small"):
        return getattr(small, request.param.removeprefix("small-"))()
    return digits(request.param)


def test_parameters_are_exact(model):
    layers = profile(model)
    assert layers.parameters == count(model)
    assert len(set(layers.path)) == len(layers)


def test_multiplications_are_those_that_torch_counts(small):
    """torch's own counter, attention products and norms left out, is the slow reference."""
    for made in (
        digits("cnn"),
        digits("dwcnn"),
        digits("vit"),
        small.cnn(),
        *map(small.transformer, ("llama", "gpt2", "bert")),
    ):
        layers = profile(made, Workload(seq_len=24))
        feed = {n: torch.from_numpy(a) for n, a in made.example(Workload(seq_len=24)).items()}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made.forward(feed)
        counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        products = sum(n for op, n in counts.items() if "bmm" not in op and "attention" not in op)
        dense = np.isin(layers.kind, ("linear", "conv"))
        assert layers.keep(dense).macs == products // 2, type(made.module).__name__


def test_recurrent_and_expert_weights_are_used_as_often_as_they_are(small):
    made = small.lstm()
    lstm = profile(made, Workload(seq_len=12))
    assert set(lstm.positions[lstm.kind == "lstm"]) == {12.0}
    assert lstm.index("lstm.weight_hh_l1_reverse") >= 0
    assert lstm.bias[lstm.index("lstm.weight_ih_l0")] == 4 * made.module.lstm.hidden_size
    mixtral = profile(small.transformer("mixtral"), Workload(seq_len=24))
    experts = mixtral.kind == "experts"
    assert set(mixtral.positions[experts]) == {24 * 2 / 4}  # two experts of four for each token
    assert set(mixtral.copies[experts]) == {4}
    assert (mixtral.role == "router").sum() == 4


def test_profiling_changes_nothing(model):
    model.module.train()
    first = next(model.module.parameters())
    first.requires_grad_(False)
    before = copy.deepcopy(model.module.state_dict())
    again = [profile(model).rows() for _ in range(2)]
    assert again[0] == again[1]
    assert model.module.training
    assert not first.requires_grad
    assert all(p.grad is None for p in model.module.parameters())
    assert not any(part._forward_hooks for part in model.module.modules())
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_meta_device_gives_the_same_table(model):
    if model.output == "embedding":
        pytest.skip("BERT looks into its attention mask, which holds no values there")
    ghost = LoadedModel(copy.deepcopy(model.module).to("meta"), model.info, model.inputs, model.output, "tests:meta")
    if hasattr(ghost.module, "tie_weights"):
        ghost.module.tie_weights()
    real, planned = profile(model), profile(ghost)
    everything = np.ones(len(real), dtype=bool)
    assert planned.rows() == real.change(everything, density=1.0, pattern="dense").rows()


def test_which_norms_fold_is_seen_and_not_guessed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.b2, self.c1, self.b1 = nn.BatchNorm2d(4), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.c2, self.pre, self.fc = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x):
            x = self.b2(self.c2(torch.relu(self.b1(self.c1(x)))))
            return self.fc(self.pre(torch.relu(x)).mean((2, 3)))

    layers = profile(own(Net(), "cnn"))
    folds = {path: into for path, into in zip(layers.path, layers.folds_into, strict=True) if into}
    assert folds == {"b1": "c1", "b2": "c2"}
    file = deployed(layers)
    assert "pre" in file.path
    assert file.stored_bytes == 4 * (4 * 9 + 4 + 4 * 36 + 4 + 4 * 4 + 3 * 4 + 3)


def test_unread_layers_are_seen(small):
    bert = profile(small.transformer("bert"))
    assert bert.path[~bert.exported].tolist() == ["pooler.dense"]
    assert deployed(bert).parameters == bert.parameters - 32 * 32 - 32


def test_unusual_modules_are_counted():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.gain = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.ones(()))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.up, self.norm = nn.ConvTranspose2d(1, 2, 2, stride=2), nn.BatchNorm2d(2, affine=False)
            self.gru = nn.GRU(32, 8, batch_first=True, bias=False)
            self.fc = nn.Linear(8, 3)
            self.shared = self.fc

        def forward(self, x):
            x = self.norm(self.up(x)) * self.gain  # [batch, 2, 16, 16]
            x = self.gru(x.flatten(2).reshape(len(x), 16, 32))[0] + self.token
            return self.shared(self.attention(x, x, x)[0].mean(1))

    made = own(Odd(), "transformer")
    layers = profile(made)
    assert layers.parameters == count(made)
    kinds = dict(zip(layers.path, layers.kind, strict=True))
    assert kinds == {
        "token": "other", "gain": "other", "attention.in_proj_weight": "linear", "attention.out_proj": "linear",
        "up": "conv", "norm": "norm", "gru.weight_ih_l0": "lstm", "gru.weight_hh_l0": "lstm", "fc": "linear",
    }  # fmt: skip
    assert layers.positions[layers.index("attention.in_proj_weight")] == 16
    assert layers.positions[layers.index("attention.out_proj")] == 16
    assert layers.row_macs[layers.index("up")] == 1 * 2 * 4 * 64
    assert layers.buffers[layers.index("norm")] == 4


# -- after surgery ---------------------------------------------------------------------------------


def test_a_factored_layer_is_one_row_with_its_rank(small):
    model = small.transformer("gpt2")
    before = profile(model)
    path = "transformer.h.0.mlp.c_fc"
    replace_module(model.module, path, empty_factors(model.module.get_submodule(path), 5))
    after = profile(model)
    assert after.parameters == count(model)
    expected = before.change(before.path == path, rank=5)
    assert (after.macs, after.path.tolist()) == (expected.macs, expected.path.tolist())


def test_dropped_blocks_and_halves(small):
    from backends.blocks import drop_blocks

    model = small.transformer("llama")
    before = profile(model)
    drop_blocks(model.module, [1, 2])
    after = profile(model)
    expected = LayerDrop().effect(before, Decision(technique="layer_drop", dropped_blocks=(1, 2)))
    assert (after.parameters, after.macs, after.info.blocks) == (expected.parameters, expected.macs, 2)
    assert after.path.tolist() == expected.path.tolist()
    model.module.half()
    assert profile_bits(model) == {16}


def profile_bits(model):
    from backends.profile import _rows
    from backends.watch import Seen

    return set(LayerTable.of(list(_rows(model.module, Seen())), model.info).bits.tolist())


def test_density_is_that_of_the_weights(small):
    model = small.transformer("llama")
    weight = model.module.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[:, ::4] = 0
    layers = profile(model)
    row = layers.index("model.layers.0.mlp.up_proj")
    assert (layers.density[row], layers.pattern[row]) == (0.75, "unstructured")
    assert layers.stored_bytes == 4 * count(model)


@pytest.mark.parametrize("compression", [1.5, 3.0])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "qwen3"])
def test_resized_tables_are_those_of_models_built_in_that_shape(kind, compression):
    """The rows of a student's table against the same class under the student's configuration."""
    import transformers as hf

    from backends.huggingface import wrap

    def made(blocks, hidden, ffn, heads, kv, dim):
        names = {"vocab_size": 64, "hidden_size": hidden, "num_hidden_layers": blocks, "num_attention_heads": heads}
        llama = names | {
            "intermediate_size": ffn,
            "num_key_value_heads": kv,
            "head_dim": dim,
            "max_position_embeddings": 64,
        }
        config = {
            "llama": lambda: hf.LlamaConfig(**llama),
            "gpt2": lambda: hf.GPT2Config(
                vocab_size=64, n_embd=hidden, n_layer=blocks, n_head=heads, n_inner=ffn, n_positions=64
            ),
            "mixtral": lambda: hf.MixtralConfig(**llama, num_local_experts=4, num_experts_per_tok=2),
            "qwen3": lambda: hf.Qwen3Config(**llama),
        }[kind]()
        options = {"attn_implementation": "eager"} | (
            {"experts_implementation": "batched_mm"} if kind == "mixtral" else {}
        )
        with torch.device("meta"):
            module = hf.AutoModelForCausalLM.from_config(config, **options)
            return profile(wrap(module.eval(), "tests:m", "causal-lm", None, None))

    dim = 24 if kind == "qwen3" else 16  # a head width of its own
    kv = 8 if kind == "gpt2" else 4
    teacher = made(6, 128, 256, 8, kv, dim)
    shape = solve_student(teacher, compression)
    student = resize(teacher, shape)
    assert student.parameters == pytest.approx(teacher.parameters / compression, rel=0.05)
    real = made(shape.blocks, shape.hidden_size, shape.ffn_size, shape.heads, shape.kv_heads, student.info.head_dim)
    assert student.rows() == real.rows()


# -- the zoo ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo_names())
def test_packaged_tables_are_the_zoos_profiles(name):
    shipped = table_from_json(__import__("json").loads((TABLES / f"{name}.json").read_text()))
    model = load(f"zoo:{name}")
    real = packaged(name)
    assert shipped.parameters == count(model)
    assert table_to_json(shipped) == table_to_json(real), "run: python -m backends.zoo.tables"

"""Loading models: every kind of source, what is recognized, and the one line that bad input gets."""

import json
import shutil
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from backends.models import InputSpec, LoadedModel, check_finite, load, pooled, predictor
from backends.recognize import family, subfamily
from knowledge.layers import ModelInfo
from knowledge.values import InputError, Workload

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder as save_pretrained writes it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


def tokens(batch=2, time=9):
    ids = torch.randint(0, 64, (batch, time), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def line(source, **options):
    """The line that a user reads."""
    with pytest.raises(InputError) as caught:
        load(str(source), **{"allow_code": True, **options})
    text = str(caught.value)
    assert "\n" not in text
    return text


# -- Hugging Face folders --------------------------------------------------------------------------


def test_a_folder_says_what_it_holds(llama):
    model = load(str(llama))
    info = model.info
    assert (info.family, info.task, info.subfamily, info.architecture) == (
        "transformer",
        "causal-lm",
        "decoder",
        "LlamaForCausalLM",
    )
    assert (info.vocab_size, info.hidden_size, info.ffn_size, info.blocks) == (64, 32, 64, 2)
    assert (info.heads, info.kv_heads, info.head_dim, info.max_length) == (4, 2, 8, 64)
    assert [spec.name for spec in model.inputs] == ["input_ids", "attention_mask"]
    assert not model.module.training
    assert all(p.dtype == torch.float32 for p in model.module.parameters())
    assert model.module.config._attn_implementation == "eager"
    assert model.forward(tokens()).shape == (2, 9, 64)


def test_half_precision_folders_are_loaded_in_float32(copy):
    path = copy / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    assert {p.dtype for p in load(str(copy)).module.parameters()} == {torch.float32}


def test_experts_are_recognized_and_computed_alike_in_both_forms(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    model = load(str(tmp_path))
    assert (model.info.family, model.info.experts, model.info.experts_per_token) == ("moe", 4, 2)
    feed = tokens()
    with torch.no_grad():
        exported = model.exportable()(feed["input_ids"], feed["attention_mask"])
        torch.testing.assert_close(exported, model.forward(feed), atol=1e-5, rtol=1e-4)
    assert model.module.config._experts_implementation == "grouped_mm"


def test_classifiers_and_encoders_are_told_by_their_class(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    config = BertConfig(**SIZES, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    model = load(str(tmp_path / "classifier"))
    assert (model.info.task, model.info.classes, model.info.subfamily) == ("text-classification", 3, "encoder")
    assert model.forward(tokens()).shape == (2, 3)
    BertModel(config).save_pretrained(tmp_path / "encoder")
    model = load(str(tmp_path / "encoder"))
    vectors = model.forward(tokens())
    assert model.info.task == "embedding"
    assert vectors.shape == (2, 32)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    # the head that an encoder lacks would be random
    assert "weight classifier.bias is missing" in line(tmp_path / "encoder", task="text-classification")


def test_vision_models_take_images(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {k: v for k, v in SIZES.items() if k != "vocab_size"}
    config = ViTConfig(**sizes, image_size=16, patch_size=8, num_channels=1, num_labels=5)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    model = load(str(tmp_path))
    assert (model.info.task, model.info.subfamily, model.info.image_size) == (
        "image-classification",
        "vision-transformer",
        (1, 16, 16),
    )
    assert model.inputs == (InputSpec("pixel_values", "float32", ("batch", 1, 16, 16)),)
    assert predictor(model)(model.example(Workload(batch=3))).shape == (3, 5)


def test_folder_without_configuration(tmp_path):
    assert "has no config.json; give the folder" in line(tmp_path)


def test_truncated_weights(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "truncated or corrupt" in line(copy)
    path.write_bytes(b"")
    assert "truncated or corrupt" in line(copy)


def test_missing_and_pickled_weights(copy):
    (copy / "model.safetensors").unlink()
    assert "no model.safetensors" in line(copy)
    torch.save({}, copy / "pytorch_model.bin")
    assert "only pickled weights" in line(copy)


def test_nan_weights_are_named(copy):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    assert f"{name} holds 1 NaN or infinite values" in line(copy)


def test_a_weight_that_is_missing_is_named(copy):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight is missing" in line(copy)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"architectures": None}, "add --task"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "add --task"),
        ({"model_type": "nonesuch"}, "unknown model_type 'nonesuch'"),
        ({"model_type": "nonesuch", "auto_map": {"AutoConfig": "x.Y"}}, "brings code of its own"),
    ],
)
def test_configurations_that_do_not_tell(copy, change, expected):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert expected in line(copy)


def test_broken_configuration(copy):
    (copy / "config.json").write_text('{"model_type": ')
    assert "is no JSON configuration" in line(copy)


# -- other sources ---------------------------------------------------------------------------------


def test_sources_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "no such folder or file" in line("nothing")
    assert "no such folder or file" in line(tmp_path / "nothing")
    (tmp_path / "weights.bin").write_bytes(b"x")
    assert "is a file" in line(tmp_path / "weights.bin")
    assert "did you mean digits-cnn" in line("zoo:digit-cnn")
    assert "did you mean causal-lm" in line("zoo:digits-cnn", task="causal-lmm")
    assert "did you mean transformer" in line("zoo:digits-cnn", arch="transformers")


def test_hub_ids_that_cannot_be_fetched_have_a_remedy(monkeypatch):
    import huggingface_hub

    def offline(*args, **options):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert "owner/name: no such folder, and the hub did not give it; check the name" in line("owner/name")


FACTORIES = """
    import numpy as np
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)))

    class Words(nn.Module):
        dynamic_axes = {"words": [1]}
        def __init__(self):
            super().__init__()
            self.embed, self.rnn, self.fc = nn.Embedding(50, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2)
        def forward(self, words):
            return self.fc(self.rnn(self.embed(words))[0].mean(1))

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 2)
        def forward(self, x):
            return self.fc(x)

    def net(): return Net(), {"image": np.zeros((1, 1, 8, 8), np.float32)}
    def words():
        made = Words()
        made.example_inputs = {"words": torch.zeros(1, 5, dtype=torch.long)}
        return made
    def mlp(): return Mlp(), {"x": np.zeros((1, 6))}
    def bare(): return Net()
    def wrong(): return Net(), {"image": np.zeros((1, 2, 8, 8), np.float32)}
    def fails(): raise RuntimeError("no weights here")
    def number(): return 3
    def hugging():
        from transformers import GPT2Config, GPT2LMHeadModel
        return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32))
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "zoo_factories.py").write_text(textwrap.dedent(FACTORIES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    monkeypatch.delitem(__import__("sys").modules, "zoo_factories", raising=False)


@pytest.mark.usefixtures("factories")
def test_factories_describe_their_inputs():
    model = load("zoo_factories:net", allow_code=True)
    assert (model.info.family, model.info.task, model.info.classes) == ("cnn", "image-classification", 3)
    assert model.info.image_size == (1, 8, 8)
    assert model.inputs == (InputSpec("image", "float32", ("batch", 1, 8, 8)),)
    assert predictor(model)(model.example(Workload(batch=2))).shape == (2, 3)
    model = load("zoo_factories:words", allow_code=True)
    assert (model.info.family, model.info.task, model.info.vocab_size) == ("rnn", "text-classification", 50)
    assert model.inputs == (InputSpec("words", "int64", ("batch", "sequence")),)
    assert model.example(Workload(seq_len=7))["words"].shape == (1, 7)
    model = load("zoo_factories:hugging", allow_code=True)
    assert (model.info.task, model.info.subfamily, model.info.ffn_size) == ("causal-lm", "decoder", 64)
    assert predictor(model)(model.example(Workload(seq_len=6))).shape == (1, 6, 40)


@pytest.mark.usefixtures("factories")
def test_factories_that_do_not_say_enough():
    assert "add --arch (transformer, cnn, rnn, moe)" in line("zoo_factories:mlp")
    assert load("zoo_factories:mlp", allow_code=True, arch="rnn", task="sequence-classification").info.family == "rnn"
    assert "what its inputs look like; return (module, {" in line("zoo_factories:bare")
    assert "does not run on its example: RuntimeError" in line("zoo_factories:wrong")
    assert "failed: RuntimeError: no weights here" in line("zoo_factories:fails")
    assert "returned int, not a torch module" in line("zoo_factories:number")
    assert "has no function 'nonesuch'" in line("zoo_factories:nonesuch")
    assert "cannot be imported: ModuleNotFoundError" in line("nonesuch_module:make")
    assert "--allow-code" in line("zoo_factories:net", allow_code=False)


# -- recognition -----------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)


class ExciteAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([nn.Conv2d(1, 4, 3)], "cnn"),
        ([nn.Conv2d(1, 4, 3), ExciteAttention()], "cnn"),
        ([nn.Linear(4, 4), nn.LSTM(4, 4)], "rnn"),
        ([nn.Linear(4, 4), nn.GRUCell(4, 4)], "rnn"),
        ([nn.Conv2d(1, 4, 2), Attention()], "transformer"),
        ([nn.MultiheadAttention(4, 2)], "transformer"),
        ([nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(4, 4)])})], "moe"),
    ],
)
def test_families(parts, expected):
    assert family(nn.Sequential(*parts), "here") == expected


@pytest.mark.parametrize("parts", [[nn.Linear(4, 4)], [nn.LSTM(4, 4), nn.Conv1d(4, 4, 3)]])
def test_unclear_families_are_asked_for(parts):
    with pytest.raises(InputError, match="architecture is unclear"):
        family(nn.Sequential(*parts), "here")
    assert family(nn.Sequential(*parts), "here", "cnn") == "cnn"


def test_subfamilies():
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    assert subfamily(depthwise, "cnn", "image-classification") == "depthwise-cnn"
    assert subfamily(nn.Sequential(nn.Conv2d(4, 4, 3)), "cnn", "image-classification") == "plain-cnn"
    assert subfamily(nn.Sequential(nn.GRU(4, 4)), "rnn", "sequence-classification") == "gru"


# -- what a loaded model does ----------------------------------------------------------------------


def small(module=None):
    info = ModelInfo("small", "rnn", "sequence-classification", classes=3, max_length=6)
    spec = InputSpec("sequence", "float32", ("batch", "sequence", 4))
    torch.manual_seed(0)
    return LoadedModel(module or nn.Sequential(nn.Linear(4, 3)), info, (spec,), "tensor", "here")


def test_examples_follow_the_workload_and_the_seed():
    model = small()
    example = model.example(Workload(batch=2, seq_len=5))
    assert example["sequence"].shape == (2, 5, 4)
    assert model.example(Workload(seq_len=50))["sequence"].shape == (1, 6, 4)  # no longer than the model takes
    assert model.example(Workload())["sequence"].shape == (1, 6, 4)
    np.testing.assert_array_equal(example["sequence"], model.example(Workload(batch=2, seq_len=5))["sequence"])
    assert not np.array_equal(example["sequence"], model.example(Workload(batch=2, seq_len=5), seed=1)["sequence"])


def test_prediction_leaves_the_mode_alone_and_takes_no_gradients():
    model = small(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9)))
    feed = model.example(Workload())
    model.module.train()
    first, second = predictor(model)(feed), predictor(model)(feed)
    np.testing.assert_array_equal(first, second)  # no dropout
    assert model.module.training
    assert model.forward({"sequence": torch.from_numpy(feed["sequence"])}).requires_grad


def test_a_clone_has_weights_of_its_own():
    model = small()
    clone = model.clone()
    with torch.no_grad():
        clone.module[0].weight.zero_()
    assert model.module[0].weight.abs().sum() > 0
    assert clone.info is model.info


def test_what_is_exported_is_what_is_predicted():
    model = small()
    feed = model.example(Workload(batch=2))
    with torch.no_grad():
        exported = model.exportable()(torch.from_numpy(feed["sequence"])).numpy()
    np.testing.assert_array_equal(exported, predictor(model)(feed))


def test_pooling_leaves_padding_out():
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    vector = pooled(hidden, torch.tensor([[1, 1, 0]]))
    torch.testing.assert_close(vector, torch.tensor([[0.6, 0.8]]))


def test_infinite_buffers_are_found():
    norm = nn.BatchNorm1d(3)
    norm.running_var[1] = float("inf")
    with pytest.raises(InputError, match="running_var holds 1 NaN or infinite"):
        check_finite(norm, "here")

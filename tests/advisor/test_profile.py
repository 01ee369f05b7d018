"""Tables for planning: equal to the torch profile, without torch; one line for every kind of bad input."""

import json
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from advisor.profile import check_real, profile_source, zoo_table
from advisor.workloads import at_workload
from knowledge.values import InputError, Workload

ROOT = Path(__file__).parents[2]
WIDE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
DECODER = WIDE | {"num_key_value_heads": 2, "max_position_embeddings": 64}
VIT = {k: v for k, v in WIDE.items() if k != "vocab_size"} | {"image_size": 8, "patch_size": 2, "num_channels": 1}
SMALL_BERT = WIDE | {"max_position_embeddings": 64}
MODELS = {
    "llama": ("LlamaForCausalLM", DECODER | {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaForCausalLM", DECODER | {"tie_word_embeddings": True}),
    "llama-head-dim": ("LlamaForCausalLM", DECODER | {"head_dim": 16}),
    "qwen3": ("Qwen3ForCausalLM", DECODER | {"head_dim": 16}),
    "mixtral": ("MixtralForCausalLM", DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt2-classifier": (
        "GPT2ForSequenceClassification",
        {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0},
    ),
    "bert": ("BertModel", SMALL_BERT),
    "bert-classifier": ("BertForSequenceClassification", SMALL_BERT | {"num_labels": 5}),
    "bert-masked": ("BertForMaskedLM", SMALL_BERT),
    "roberta": ("RobertaForSequenceClassification", SMALL_BERT),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"vocab_size": 96, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", SMALL_BERT),
    "vit": ("ViTForImageClassification", VIT),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "num_channels": 1, "layer_type": "basic"},
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models as save_pretrained writes them, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            import torch
            import transformers

            torch.manual_seed(0)
            cls, sizes = MODELS[name]
            model_class = getattr(transformers, cls)
            folder = tmp_path_factory.mktemp(name)
            model_class(model_class.config_class(**sizes)).save_pretrained(folder)
            made[name] = folder
        return made[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_headers_tell_what_the_loaded_model_tells(name, folders):
    from backends.models import load
    from backends.profile import profile

    workload = Workload(seq_len=24)
    planned = profile_source(str(folders(name)), workload=workload)
    real = profile(load(str(folders(name))), workload)
    assert (planned.parameters, planned.macs, planned.stored_bytes) == (real.parameters, real.macs, real.stored_bytes)
    facts = (
        "family",
        "task",
        "subfamily",
        "vocab_size",
        "hidden_size",
        "heads",
        "kv_heads",
        "blocks",
        "classes",
        "seq_len",
    )
    assert [getattr(planned.info, f) for f in facts] == [getattr(real.info, f) for f in facts]
    assert sorted(planned.role) == sorted(real.role)
    assert (planned.exported.sum(), (planned.tied_to != "").sum()) == (real.exported.sum(), (real.tied_to != "").sum())
    assert set(planned.path) == set(real.path)


def test_sharded_weights_are_read_through_their_index(folders, tmp_path):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folders("llama"))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert profile_source(str(tmp_path)).rows() == profile_source(str(folders("llama"))).rows()


def test_experts_that_are_stored_one_by_one(folders, tmp_path):
    """Checkpoints hold each expert's matrices; memory holds stacks of them."""
    config = json.loads((folders("mixtral") / "config.json").read_text())
    shapes = {"model.embed_tokens.weight": [96, 32], "lm_head.weight": [96, 32], "model.norm.weight": [32]}
    for block in range(3):
        here = f"model.layers.{block}"
        for name, outputs in (("q", 32), ("k", 16), ("v", 16), ("o", 32)):
            shapes[f"{here}.self_attn.{name}_proj.weight"] = [outputs, 32]
        shapes[f"{here}.block_sparse_moe.gate.weight"] = [4, 32]
        shapes |= {f"{here}.{n}_layernorm.weight": [32] for n in ("input", "post_attention")}
        for expert in range(4):
            for name, shape in (("w1", [48, 32]), ("w2", [32, 48]), ("w3", [48, 32])):
                shapes[f"{here}.block_sparse_moe.experts.{expert}.{name}.weight"] = shape
    write_safetensors(tmp_path / "model.safetensors", shapes)
    (tmp_path / "config.json").write_text(json.dumps(config))
    planned, known = profile_source(str(tmp_path)), profile_source(str(folders("mixtral")))
    assert (planned.parameters, planned.macs) == (known.parameters, known.macs)
    assert set(planned.path) == set(known.path)


def dense_file(path):
    """An ONNX file with one dense layer. [batch, 8] -> [batch, 4]"""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    stored = [("fc.weight", np.ones((4, 8), np.float32)), ("fc.bias", np.ones(4, np.float32))]
    node = helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"], transB=1)
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size])] for n, size in (("x", 8), ("y", 4))]
    graph = helper.make_graph([node], "g", *ends, [numpy_helper.from_array(a, n) for n, a in stored])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def write_safetensors(path, shapes, dtype="F16"):
    header, end = {}, 0
    for name, shape in shapes.items():
        count = 2
        for n in shape:
            count *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count]}
        end += count
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(end))


# -- the other sources -----------------------------------------------------------------------------


def test_onnx_zoo_and_typical_models(tmp_path):
    path = dense_file(tmp_path / "m.onnx")
    assert profile_source(str(path)).parameters == 4 * 8 + 4
    assert profile_source("zoo:digits-cnn").info.family == "cnn"
    assert profile_source(None, arch="rnn").info.typical
    assert profile_source("", arch="cnn", params=10_000_000).parameters == pytest.approx(1e7, rel=0.05)


def test_factories_are_built_without_weights(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        textwrap.dedent("""
            import numpy as np
            from torch import nn

            def big():
                net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 64, 200_000_000 // 512))
                return net, {"pixels": np.zeros((2, 3, 8, 8), np.float32)}

            def recurrent():
                class Net(nn.Module):
                    def __init__(self):
                        super().__init__()
                        self.rnn, self.fc = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)
                    def forward(self, x):
                        return self.fc(self.rnn(x)[0][:, -1])
                return Net(), {"x": np.zeros((2, 6, 4), np.float32)}

            def broken():
                raise OSError("no such weights")
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    big = profile_source("my_models:big")
    assert big.parameters == 8 * 27 + 8 + (200_000_000 // 512) * 513
    assert big.info.task == "image-classification"
    assert profile_source("my_models:recurrent").info.family == "rnn"
    assert "no such weights" in line("my_models:broken")


def test_positions_follow_the_workload():
    short, long = (profile_source("zoo:stdlib-lm", workload=Workload(seq_len=n)) for n in (32, 128))
    assert long.macs == 4 * short.macs
    assert short.info.seq_len == 32
    assert profile_source("zoo:digits-lstm", workload=Workload(seq_len=128)).info.seq_len == 8  # all that it reads
    cnn = zoo_table("digits-cnn")
    larger = at_workload(cnn, Workload(image_size=(1, 16, 16)))
    head = cnn.index("fc")
    assert larger.macs == 4 * cnn.macs - 3 * cnn.row_macs[head]
    with pytest.raises(InputError, match="channels"):
        at_workload(cnn, Workload(image_size=(3, 8, 8)))
    with pytest.raises(InputError, match="image-size"):
        at_workload(zoo_table("digits-vit"), Workload(image_size=(1, 16, 16)))


def test_planning_imports_no_framework(folders, tmp_path):
    sources = [str(folders("bert")), str(folders("mixtral")), "zoo:minilm", str(dense_file(tmp_path / "m.onnx")), ""]
    code = f"""
        import sys
        from advisor.profile import profile_source
        for source in {sources!r}:
            profile_source(source, arch=None if source else "moe", task=None)
        print([m for m in ("torch", "transformers", "onnxruntime", "sklearn", "scipy", "optuna") if m in sys.modules])
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    found = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# -- bad input -------------------------------------------------------------------------------------


def line(source, **options):
    """The line that a user reads."""
    with pytest.raises(InputError) as caught:
        profile_source(None if source is None else str(source), **options)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.remedy
    return text


@pytest.fixture
def copy(folders, tmp_path):
    import shutil

    return shutil.copytree(folders("llama"), tmp_path / "copy")


def edit(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def test_sources_that_are_not_there(tmp_path):
    assert "no such folder or file" in line("./nowhere")
    assert "no config.json" in line(tmp_path)
    assert "no such file" in line(tmp_path / "m.onnx")
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    assert "not a readable ONNX file" in line(tmp_path / "x.onnx")
    (tmp_path / "weights.bin").write_bytes(b"")
    assert "is a file" in line(tmp_path / "weights.bin")
    assert "did you mean digits-cnn" in line("zoo:digit-cnn")
    assert "give MODEL, or --arch" in line(None)
    assert "leave out MODEL" in line("zoo:minilm", params=7_000_000)


def test_typical_models_are_told_from_real_ones_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "models").mkdir(parents=True)
    own = (ROOT / "knowledge" / "models" / "resnet-50.yaml").read_text().replace("id: resnet-50", "id: our-net")
    (tmp_path / "mine" / "models" / "our-net.yaml").write_text(own)
    for name, knowledge in (("resnet-50", ""), ("our-net", "mine"), ("", "")):
        with pytest.raises(InputError, match="for estimates only"):
            check_real(name, knowledge)
    (tmp_path / "resnet-50").mkdir()
    for name in ("resnet-50", "our-net", "zoo:minilm", "owner/name", "own:build", "m.onnx"):
        check_real(name)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\x01", '"a"'])
def test_a_configuration_that_is_no_json_object(copy, text):
    (copy / "config.json").write_text(text)
    assert "config.json: is no JSON configuration" in line(copy)


def test_what_a_configuration_does_not_tell(copy):
    assert "unclear" in line(edit(copy, num_attention_heads=None, model_type="mamba"))
    assert "--arch" in line(copy)
    assert "--task" in line(edit(copy, num_attention_heads=4, architectures=["LlamaForTokenClassification"]))
    assert profile_source(str(copy), task="causal-lm").parameters > 0
    assert "is quantized already" in line(edit(copy, quantization_config={"bits": 4}))
    assert "encoder–decoder" in line(edit(copy, quantization_config=None, is_encoder_decoder=True))
    assert "did you mean transformer" in line(copy, arch="tranformer")
    assert "did you mean text-classification" in line(copy, task="text-clasification")


@pytest.mark.parametrize("keep", [0, 5, 8, 200, -1])
def test_truncated_weights(copy, keep):
    path = copy / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    assert "model.safetensors: truncated" in line(copy)


@pytest.mark.parametrize(
    "header",
    [
        b"{}x",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [100000000000, 100000000000], "data_offsets": [0, 4]}}',
        b"[" * 100_000,
    ],
)
def test_garbage_in_the_header(copy, header):
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "header" in line(copy) or "truncated" in line(copy)


def test_experts_without_their_up_projections(copy):
    edit(copy, architectures=["MixtralForCausalLM"], num_local_experts=2, num_experts_per_tok=1)
    down = "model.layers.2.block_sparse_moe.experts.0.w2.weight"
    write_safetensors(copy / "model.safetensors", {down: [4, 8]})
    assert "the up projections are missing" in line(copy)


@pytest.mark.parametrize("size", ["big", 22.5, -5, [224], [0, 1]])
def test_an_image_size_that_is_none(copy, size):
    given = {"image_size": size, "architectures": ["ViTForImageClassification"], "model_type": "vit"}
    assert f"config.json says image_size {size}" in line(edit(copy, **given))


def test_other_weights(copy):
    path = copy / "model.safetensors"
    write_safetensors(path, {"model.layers.0.mlp.up_proj.weight": [4, 4]}, dtype="I16")
    assert "holds I16 numbers" in line(copy)
    path.unlink()
    assert "no model.safetensors" in line(copy)
    (copy / "pytorch_model.bin").write_bytes(b"")
    assert "pickled" in line(copy)
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    assert "the folder has" in line(copy)
    (copy / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    assert "is no safetensors index" in line(copy)

"""Models that are asked to be what they are not, and files that contradict themselves."""

import json

import numpy as np
import pytest
from typed import GOOD, advisor, edited, plan_file, refused, texts

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def own_store(folder, monkeypatch):
    monkeypatch.setenv("ADVISOR_STORE", str(folder / "store"))


# -- the task fidelity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["inspect", "recommend"])
def test_fidelity_is_a_task_of_every_model(model, command):
    for source, own in (("model", "text-classification"), ("zoo:digits-cnn", "image-classification")):
        shown = advisor(command, source, "--task", "fidelity", "--json")
        assert shown.exit_code in (0, 1), shown.output
        told = json.loads(shown.stdout)
        assert (told if command == "inspect" else told["profile"])["task"] == own
        if command == "recommend":
            assert told["request"]["task"] == "fidelity"
            assert {chain["estimate"]["quality_drop"]["unit"] for chain in told["chains"]} == {"pp"}


def test_a_search_for_fidelity_needs_no_labels(folder, model, own_store):
    data = texts("e.jsonl", [{"text": row["text"]} for row in GOOD])
    shown = advisor(
        "search", "model", "--task", "fidelity", "--eval-data", data, "--trials", "1", "--out", "study", "--json"
    )
    assert shown.exit_code in (0, 1), shown.output
    verified = json.loads((folder / "study" / "best" / "verification.json").read_text())
    assert verified["baseline"]["quality"] == {
        "metric": "agreement", "value": 1.0, "higher_is_better": True, "unit": "pp",
    }  # fmt: skip


# -- another architecture, another task --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("inspect",), ("recommend",), ("search", "--out", "study")])
def test_a_model_is_not_what_another_name_says(folder, model, command):
    for source, arch, own in (("model", "cnn", "transformer"), ("zoo:digits-cnn", "transformer", "cnn")):
        shown = advisor(command[0], source, *command[1:], "--arch", arch)
        refused(shown, 2, f"arch: {arch}: {source} is {own}", "leave out --arch")
    assert not (folder / "study").exists()


def test_a_plan_that_names_another_architecture(folder, model, own_store):
    data = {"eval": texts("e.jsonl", GOOD)}
    plan = plan_file(model="model", task="text-classification", arch="rnn", data=data)
    refused(advisor("run", plan, "--out", "run"), 2, "arch: rnn: model is transformer")
    refused(advisor("run", plan_file(arch="rnn"), "--out", "run"), 2, "arch: rnn: zoo:digits-cnn is cnn")
    assert not (folder / "run").exists()


def test_a_task_that_a_model_cannot_have(folder, model):
    words = ("task: image-classification: model reads tokens (a vocabulary of 4,000), not images", "leave out --task")
    for command in (("inspect",), ("recommend",)):
        refused(advisor(*command, "model", "--task", "image-classification"), 2, *words)
    data = {"eval": texts("e.jsonl", GOOD)}
    plan = plan_file(model="model", task="image-classification", data=data)
    refused(advisor("run", plan, "--out", "run"), 2, *words)
    shown = advisor("inspect", "zoo:digits-cnn", "--task", "causal-lm")
    refused(shown, 2, "task: causal-lm: zoo:digits-cnn is image-classification")
    refused(advisor("inspect", "model", "--task", "sequence-classification"), 2, "choose among causal-lm")


def test_an_onnx_file_of_another_family(folder, onnx_file):
    refused(advisor("inspect", "net.onnx", "--arch", "rnn"), 2, "arch: rnn: net.onnx is cnn")
    assert advisor("inspect", "net.onnx", "--arch", "cnn").exit_code == 0


@pytest.fixture
def onnx_file(folder):
    import torch

    net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10))
    torch.onnx.export(
        net, (torch.zeros(2, 1, 8, 8),), "net.onnx", input_names=["pixels"], dynamic_axes={"pixels": {0: "batch"}},
        dynamo=False,
    )  # fmt: skip


# -- workloads that a model or this machine cannot take ----------------------------------------------------------------


@pytest.fixture(scope="module")
def short(tmp_path_factory, bert):
    """A classifier that reads at most 24 tokens, as a folder and as an ONNX file."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from backends.models import load
    from backends.onnx.export import export
    from knowledge.values import Workload

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("short")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=60, max_position_embeddings=24, num_labels=2, **sizes)
    BertForSequenceClassification(config).save_pretrained(path / "short")
    export(load(str(path / "short")), path / "short.onnx", Workload(seq_len=8))
    ids = np.random.default_rng(0).integers(0, 60, (40, 12))
    np.savez(path / "ids.npz", input_ids=ids, labels=np.arange(40) % 2)
    return path


@pytest.mark.parametrize("name", ["short", "short.onnx"])
def test_sequences_end_where_the_model_does(short, own_store, name):
    source, data = str(short / name), {"eval": str(short / "ids.npz")}
    words = ("seq-len: 25: short reads at most 24 tokens", "ask for 24 or fewer")
    refused(advisor("recommend", source, "--seq-len", "25"), 2, *words)
    assert json.loads(advisor("inspect", source, "--json").stdout)["facts"]["seq_len"] == 24
    advice = json.loads(advisor("recommend", source, "--json").stdout)
    assert advice["request"]["seq_len"] == 24
    given = {"model": source, "task": "text-classification", "data": data, "stages": []}
    refused(advisor("run", plan_file(**given, workload={"seq_len": 25, "threads": 1}), "--out", "run"), 2, *words)
    shown = advisor("run", plan_file(**given, workload={"seq_len": 24, "threads": 1}), "--out", "run")
    assert shown.exit_code in (0, 1), shown.output


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ({"threads": 1_000_000}, ("threads: 1000000", "ask for 1024 or fewer")),
        ({"batch": 10**10}, ("batch: 10000000000", "of memory are free", "or fewer")),
        ({"image_size": [1, 16, 16]}, ("image-size: 1×16×16: the model and its data have 1×8×8", "leave it out")),
    ],
)
def test_a_workload_that_cannot_be_measured(folder, own_store, workload, words):
    refused(advisor("run", plan_file(workload={"threads": 1} | workload), "--out", "run"), 2, *words)
    assert not (folder / "run").exists()


def test_memory_that_runs_out_is_no_fault_of_ours(folder, monkeypatch):
    from advisor.show.shell import out_of_memory
    from backends.runner import Pipeline

    def exhausted(*_, **__):
        raise MemoryError("Unable to allocate 80. GiB for an array")

    monkeypatch.setattr(Pipeline, "open", exhausted)
    line = refused(advisor("run", plan_file(), "--out", "run"), 3, "out of memory", "80. GiB")
    assert "fault in advisor" not in line
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"))


def test_positions_that_start_behind_the_padding_token(folder):
    import torch
    from transformers import RobertaConfig, RobertaModel

    from advisor.profile import profile_source
    from backends.models import load

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    RobertaModel(RobertaConfig(vocab_size=60, max_position_embeddings=26, **sizes)).save_pretrained("roberta")
    assert profile_source("roberta").info.max_length == 24
    model = load("roberta")
    ids = torch.full((1, model.info.max_length), 5)
    assert model.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).isfinite().all()


# -- a configuration and weights that disagree -------------------------------------------------------------------------


def test_a_size_in_letters_is_named(model):
    edited(model, vocab_size="many")
    refused(advisor("inspect", "model"), 2, "config.json says vocab_size many", "give the configuration")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": -1}, ("config.json says num_hidden_layers -1",)),
        ({"num_hidden_layers": 3}, ("config.json says num_hidden_layers 3, and the weights hold 1 blocks",)),
        ({"vocab_size": 77}, ("weight bert.embeddings.word_embeddings.weight has shape 4000×96", "makes it 77×96")),
        (
            {"hidden_size": 64},
            ("weight bert.embeddings.", ".weight has shape", "×96, and config.json makes it ", "×64"),
        ),
        ({"intermediate_size": 99}, ("intermediate.dense.weight has shape 96×96", "makes it 99×96")),
        ({"max_position_embeddings": 20}, ("position_embeddings.weight has shape 512×96", "makes it 20×96")),
        (
            {"id2label": {str(n): str(n) for n in range(5)}},
            ("weight classifier.", " has shape 2", "config.json makes it 5"),
        ),
    ],
)
def test_weights_of_another_configuration(model, changes, words):
    from backends.models import load
    from knowledge.values import InputError

    edited(model, **changes)
    for command in ("inspect", "recommend"):
        refused(advisor(command, "model"), 2, *words, "give the configuration that the weights were saved with")
    with pytest.raises(InputError) as caught:  # the same where the weights are read
        load("model")
    if "num_hidden_layers" not in changes:
        assert all(word in str(caught.value) for word in ("has shape", "config.json makes it"))


def test_weights_that_the_configured_model_does_not_have_are_told(folder, model, own_store):
    from safetensors.numpy import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights |= {name.replace("layer.0.", "layer.1."): w for name, w in weights.items() if "layer.0." in name}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    told = "16 tensors of block 1 are left out: config.json says num_hidden_layers 1"
    inspected = json.loads(advisor("inspect", "model", "--json").stdout)
    assert inspected["facts"]["note"] == told
    assert not [row for row in inspected["layers"] if "layer.1." in row["path"]]
    assert f"model: {told}" in json.loads(advisor("recommend", "model", "--json").stdout)["request"]["assumed"]
    data = {"eval": texts("e.jsonl", GOOD)}
    shown = advisor("run", plan_file(model="model", task="text-classification", data=data, stages=[]), "--out", "run")
    assert "warning: bert.encoder.layer.1." in shown.stderr
    assert "and 15 more weights of the file left out" in shown.stderr
    assert "and 15 more weights" in (folder / "run" / "report.md").read_text()

"""Stages that follow one another, on small models of three kinds: the file runs, and computes what the module does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from backends import workbench
from backends.models import predictor
from backends.onnx.session import open_session, session_predictor
from backends.runner import Pipeline
from backends.store import Store
from backends.structure import load_checkpoint
from knowledge.techniques.catalog import build
from knowledge.values import InputError, RunFailed, Stage, Workload

SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SVD = Stage(technique="svd", params={"ratio": 0.8})
CHAINS = {
    "svd+int8_dynamic": (SVD, Stage(technique="int8_dynamic")),
    "svd+int8_static": (SVD, Stage(technique="int8_static")),
    "layer_drop+svd+fp16": (Stage(technique="layer_drop", params={"ratio": 0.5}), SVD, Stage(technique="fp16")),
}


def made(kind):
    import transformers as hf

    wide = SIZES | {"intermediate_size": 128, "max_position_embeddings": 32}
    eager = {"attn_implementation": "eager"}
    if kind == "bert":
        return hf.AutoModelForSequenceClassification.from_config(hf.BertConfig(**wide, num_labels=3), **eager)
    if kind == "llama":
        return hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**wide, num_key_value_heads=2), **eager)
    sizes = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return hf.AutoModelForCausalLM.from_config(hf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0), **eager)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Kind -> its pipeline: a folder as save_pretrained writes it, and samples of token ids."""
    root, opened = tmp_path_factory.mktemp("pairs"), {}
    ids = np.random.default_rng(0).integers(0, 96, (60, 12))
    np.savez(root / "ids.npz", input_ids=ids, labels=ids[:, 0] % 3)
    np.savez(root / "tokens.npz", input_ids=ids)

    def of(kind):
        if kind not in opened:
            torch.manual_seed(0)
            module = made(kind)
            with torch.no_grad():  # the library's start is so small that outputs look alike, and biases share one zero
                for weight in module.parameters():
                    weight.add_(0.1 * torch.randn_like(weight))
            module.save_pretrained(root / kind)
            files = {"eval": str(root / ("ids.npz" if kind == "bert" else "tokens.npz"))}
            workload = Workload(seq_len=12, threads=1)
            opened[kind] = Pipeline.open(
                str(root / kind), workload=workload, seed=0, store=Store(root / "store"), files=files
            )
        return opened[kind]

    return of


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_the_file_computes_what_the_last_module_does(pipelines, kind, chain):
    pipeline = pipelines(kind)
    records = list(pipeline.run([build(stage) for stage in CHAINS[chain]]))
    assert [r.technique for r in records] == [*chain.split("+")[:-1], "export", chain.split("+")[-1]]
    assert not [w for r in records for w in r.warnings]  # the tables foretold what the stages did
    batch = {name: array[:8] for name, array in pipeline.source.data.search.inputs.items()}
    expected = predictor(load_checkpoint(pipeline.folder(records[-3])))(batch)
    got = session_predictor(open_session(pipeline.file(records[-1]), 1))(batch)
    cosine = (expected * got).sum() / np.linalg.norm(expected) / np.linalg.norm(got)
    assert cosine > (0.9999 if chain.endswith("fp16") else 0.98), cosine


def test_a_file_of_our_own_that_does_not_load_is_a_failed_run(pipelines, monkeypatch):
    def broken(technique, source: Path, target: Path, context):
        target.write_bytes(source.read_bytes()[:1000])

    pipeline = pipelines("bert")
    monkeypatch.setattr(workbench, "executor", lambda _: broken)
    with pytest.raises(RunFailed, match=r"fp16: .* of our own making that ONNX Runtime cannot load .* are kept"):
        list(pipeline.run([build(Stage(technique="fp16"))]))


def test_a_file_of_the_users_that_does_not_load_is_bad_input(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07not a model")
    with pytest.raises(InputError, match="ONNX Runtime cannot load it"):
        open_session(tmp_path / "model.onnx", 1, given=True)

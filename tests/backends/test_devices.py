"""Plans on a device of their own, from loading to the file: nothing stays on the CPU, or leaves it, by accident."""

import numpy as np
import pytest
import torch
from simulated import devices

from backends.models import predictor
from backends.onnx.session import open_session, session_predictor
from backends.runner import Pipeline
from backends.store import Store
from backends.structure import load_checkpoint
from knowledge.techniques.catalog import build
from knowledge.values import Stage, Workload

STAGES = [
    ("distill", {"epochs": 1, "compression": 2.0}, "digits-vit"),
    ("channels", {}, "digits-cnn"),
    pytest.param("gptq", {"accuracy_level": 0}, "stdlib-gpt2", marks=pytest.mark.full),
]


def run_on(name, params, model, folder):
    """(pipeline, records) of one technique."""
    workload = Workload(seq_len=32) if model.startswith("stdlib") else Workload()
    pipeline = Pipeline.open(f"zoo:{model}", workload=workload, seed=0, store=Store(folder))
    return pipeline, list(pipeline.run([build(Stage(technique=name, params=params))]))


def check_on(device, name, params, model, folder):
    pipeline, records = run_on(name, params, model, folder)
    assert [warning for record in records for warning in record.warnings] == []
    rebuilt = load_checkpoint(pipeline.folder(records[0]))
    assert pipeline.source.model.device == rebuilt.device == device
    batch = next(iter(pipeline.source.data.search.head(4).batches(4)))
    in_file = session_predictor(open_session(pipeline.file(records[-1]), 1))(batch)
    np.testing.assert_allclose(in_file, predictor(rebuilt)(batch), atol=2e-3)


@pytest.mark.parametrize(("name", "params", "model"), STAGES)
def test_a_stage_runs_on_the_device_and_its_file_computes_the_same(name, params, model, tmp_path, monkeypatch):
    device = devices(monkeypatch)[0]
    monkeypatch.setenv("ADVISOR_DEVICE", str(device))
    check_on(device, name, params, model, tmp_path)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("name", "params", "model"), [*STAGES, ("finetune", {"epochs": 1}, "digits-lstm")])
def test_a_stage_runs_on_a_gpu(name, params, model, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_DEVICE", "cuda:0")
    check_on(torch.device("cuda:0"), name, params, model, tmp_path)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("model", ["digits-cnn", "digits-vit"])
def test_training_on_a_gpu_gives_the_same_bytes_again(model, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_DEVICE", "cuda:0")
    found = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        pipeline, records = run_on("finetune", {"epochs": 1}, model, folder)
        found.append(pipeline.file(records[-1]).read_bytes())
    assert found[0] == found[1]

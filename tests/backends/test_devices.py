"""Plans on a device of their own, from loading to the file: nothing stays on the CPU, or leaves it, by accident."""

import numpy as np
import pytest
from simulated import devices

from backends.models import predictor
from backends.onnx.session import open_session, session_predictor
from backends.runner import Pipeline
from backends.store import Store
from backends.structure import load_checkpoint
from knowledge.techniques.catalog import build
from knowledge.values import Stage, Workload


@pytest.mark.parametrize(
    ("name", "params", "model"),
    [
        ("distill", {"epochs": 1, "compression": 2.0}, "digits-vit"),
        ("channels", {}, "digits-cnn"),
        pytest.param("gptq", {"accuracy_level": 0}, "stdlib-gpt2", marks=pytest.mark.full),
    ],
)
def test_a_stage_runs_on_the_device_and_its_file_computes_the_same(name, params, model, tmp_path, monkeypatch):
    device = devices(monkeypatch)[0]
    monkeypatch.setenv("ADVISOR_DEVICE", str(device))
    workload = Workload(seq_len=32) if model.startswith("stdlib") else Workload()
    pipeline = Pipeline.open(f"zoo:{model}", workload=workload, seed=0, store=Store(tmp_path))
    records = list(pipeline.run([build(Stage(technique=name, params=params))]))
    assert [warning for record in records for warning in record.warnings] == []
    rebuilt = load_checkpoint(pipeline.folder(records[0]))
    assert pipeline.source.model.device == rebuilt.device == device
    batch = next(iter(pipeline.source.data.search.head(4).batches(4)))
    in_file = session_predictor(open_session(pipeline.file(records[-1]), 1))(batch)
    np.testing.assert_allclose(in_file, predictor(rebuilt)(batch), atol=2e-3)

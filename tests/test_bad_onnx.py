"""ONNX files as models: what they cannot take, files that are not sound, weights that lie beside them."""

from pathlib import Path

import numpy as np
import pytest
from typed import advisor, plan_file, refused

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def onnx_file(folder, monkeypatch, digits):
    """An exported network, with shared linear weights."""
    import torch

    monkeypatch.setenv("ADVISOR_STORE", str(folder / "store"))
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10))
    axes = {"pixels": {0: "batch"}}
    torch.onnx.export(
        net, (torch.zeros(2, 1, 8, 8),), "net.onnx", input_names=["pixels"], dynamic_axes=axes, dynamo=False
    )
    return Path("net.onnx")


def test_a_stage_that_changes_no_file_on_an_onnx_file(onnx_file, digits):
    plan = plan_file(model="net.onnx", data=digits, stages=[{"technique": "magnitude"}])
    refused(advisor("run", plan, "--out", "run"), 2, "stages: magnitude", "is an ONNX file", "name the torch model")
    assert not Path("run").exists()


def test_an_onnx_file_with_weights_that_are_not_numbers(onnx_file, digits):
    import onnx

    proto = onnx.load(onnx_file)
    weight = next(i for i in proto.graph.initializer if len(i.dims) == 2)
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(proto, onnx_file)
    plan = plan_file(model="net.onnx", data=digits)
    refused(advisor("run", plan, "--out", "run"), 2, "model: net.onnx", weight.name, "1 NaN")
    assert not Path("run").exists()


def test_an_onnx_file_that_keeps_its_weights_beside_it(onnx_file, digits):
    import onnx

    from backends.sources import open_source

    onnx.save(onnx.load(onnx_file), "split.onnx", save_as_external_data=True, location="split.bin", size_threshold=0)

    def fingerprint():
        task = "image-classification"
        return open_source("split.onnx", task=task, arch=None, metric="", files=digits, seed=0).fingerprint

    before = fingerprint()
    shown = advisor("run", plan_file(model="split.onnx", data=digits, stages=[]), "--out", "run")
    assert shown.exit_code in (0, 1), shown.output
    weights = bytearray(Path("split.bin").read_bytes())
    weights[3] ^= 0x80  # the sign of one weight
    Path("split.bin").write_bytes(weights)
    assert fingerprint() != before
    Path("split.bin").unlink()
    onnx.checker.check_model(onnx.load("run/artifact/model.onnx"))

"""A file filled with other weights equals an export of them; where it cannot be filled it is exported anew."""

import numpy as np
import onnx
import pytest
import torch

from backends.models import load, predictor
from backends.onnx.export import export
from backends.onnx.refill import refill
from backends.onnx.session import open_session, session_predictor
from knowledge.values import Workload

WORKLOAD = Workload(seq_len=16)


def moved(model):
    """The same model with other numbers, zeros among them."""
    changed = model.clone()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in changed.module.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=rng) > 0.2)
    return changed


def numbers(path):
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_a_transformers_file_takes_other_numbers_without_a_trace(tmp_path):
    original = load("zoo:stdlib-gpt2")  # Conv1D, and a head tied to the embedding
    changed = moved(original)
    export(original, tmp_path / "original.onnx", WORKLOAD)
    assert refill(tmp_path / "original.onnx", original.module, changed, tmp_path / "filled.onnx", WORKLOAD)
    export(changed, tmp_path / "exported.onnx", WORKLOAD)
    filled, exported = numbers(tmp_path / "filled.onnx"), numbers(tmp_path / "exported.onnx")
    assert filled.keys() == exported.keys()
    assert all(np.array_equal(filled[name], exported[name]) for name in filled)
    batch = changed.example(WORKLOAD)
    found = session_predictor(open_session(tmp_path / "filled.onnx", 1))(batch)
    np.testing.assert_allclose(found, predictor(changed)(batch), atol=2e-4)


@pytest.mark.parametrize("name", ["digits-cnn", "digits-lstm"])
def test_folded_and_reordered_weights_are_not_filled_in(name, tmp_path):
    original = load(f"zoo:{name}")
    export(original, tmp_path / "original.onnx", WORKLOAD)
    assert not refill(tmp_path / "original.onnx", original.module, moved(original), tmp_path / "filled.onnx", WORKLOAD)
    assert not (tmp_path / "filled.onnx").exists()


def test_another_structure_is_not_filled_in(tmp_path):
    original, other = load("zoo:digits-vit"), load("zoo:digits-cnn")
    export(original, tmp_path / "original.onnx", WORKLOAD)
    assert not refill(tmp_path / "original.onnx", original.module, other, tmp_path / "filled.onnx", WORKLOAD)

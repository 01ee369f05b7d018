"""Attention as one node gives the numbers of the exported chain."""

import numpy as np
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from backends.onnx import graph as graphs
from backends.onnx.attention import fuse_attention
from backends.onnx.int8_dynamic import apply
from knowledge.techniques.quantize import Int8Dynamic


def fused(path, out):
    """(blocks fused, operators of the result)."""
    model = graphs.load(path)
    ShapeInferencePass()(model)
    count = fuse_attention(model.graph)
    RemoveUnusedNodesPass()(model)
    graphs.save(model, out)
    return count, [node.op_type for node in model.graph]


@pytest.mark.parametrize("quantized", [False, True])
def test_an_encoder_s_blocks_become_single_nodes(exported, outputs, tmp_path, quantized):
    found = exported("bert")
    path = found.path
    if quantized:
        path = tmp_path / "int8.onnx"
        apply(Int8Dynamic(), found.path, path, found.context)
    count, operators = fused(path, tmp_path / "fused.onnx")
    assert count == found.model.info.blocks
    assert operators.count("MultiHeadAttention") == count
    assert "Softmax" not in operators
    for part in (found.split, found.split.head(1)):
        np.testing.assert_allclose(outputs(tmp_path / "fused.onnx", part), outputs(path, part), atol=1e-5)


def test_a_graph_without_attention_is_left_alone(exported, outputs, tmp_path):
    found = exported("cnn")
    count, operators = fused(found.path, tmp_path / "same.onnx")
    assert count == 0
    assert "MultiHeadAttention" not in operators
    np.testing.assert_array_equal(outputs(tmp_path / "same.onnx", found.split), outputs(found.path, found.split))

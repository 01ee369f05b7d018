"""Sessions, sizes and stripping: what is done with any ONNX file."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.onnx.session import open_session, session_predictor
from backends.onnx.strip import strip
from backends.onnx.weights import weight_bytes
from knowledge.values import InputError, RunFailed


@pytest.fixture
def cluttered(tmp_path):
    """x [batch, 4] -> x @ w + b + 1, with everything that exporters leave behind."""
    w = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(4, 2), "layer.weight")
    ones = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in ("one", "uno")]
    constant = helper.make_node("Constant", [], ["bias"], value=numpy_helper.from_array(np.ones(2, np.float32)))
    nodes = [
        constant,
        helper.make_node(
            "MatMul", ["x", "layer.weight"], ["a_rather_long_name"], name="node_MatMul_17", doc_string="why"
        ),
        helper.make_node("Add", ["a_rather_long_name", "bias"], ["biased"]),
        helper.make_node("Add", ["biased", "one"], ["more"]),
        helper.make_node("Mul", ["more", "uno"], ["y"]),
        helper.make_node("Neg", ["biased"], ["unread"]),
    ]
    nodes[1].metadata_props.add(key="stack_trace", value="File a.py, line 1" * 50)
    value = [helper.make_tensor_value_info("biased", TensorProto.FLOAT, ["batch", 2])]
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [w, *ones],
        value_info=value,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="exporter"
    )
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    return path


def test_strip_keeps_the_numbers_and_the_parameter_names(cluttered):
    x = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    before, size = session_predictor(open_session(cluttered, 1))(x), cluttered.stat().st_size
    strip(cluttered)
    np.testing.assert_array_equal(session_predictor(open_session(cluttered, 1))(x), before)
    graph = onnx.load(cluttered).graph
    assert cluttered.stat().st_size < size / 2
    assert [n.op_type for n in graph.node] == ["MatMul", "Add", "Add", "Mul"]
    names = [i.name for i in graph.initializer]
    assert "layer.weight" in names
    assert len(names) == 3  # equal constants once
    assert not graph.value_info
    assert not any(n.name or n.doc_string or n.metadata_props for n in graph.node)


def test_stripping_twice_changes_nothing(cluttered):
    strip(cluttered)
    once = cluttered.read_bytes()
    strip(cluttered)
    assert cluttered.read_bytes() == once


def test_weight_bytes_counts_initializers_and_constant_nodes(cluttered):
    assert weight_bytes(cluttered) == 4 * (8 + 1 + 1 + 2)


def test_weight_bytes_counts_packed_numbers_as_stored(tmp_path):
    packed = helper.make_tensor("w", TensorProto.INT4, [4, 8], list(range(-8, 8)) * 2)
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "s"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        [packed, numpy_helper.from_array(np.float32(1), "s")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "m.onnx")
    assert weight_bytes(tmp_path / "m.onnx") == 16 + 4


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_a_broken_file_is_bad_input(cluttered, damage):
    data = cluttered.read_bytes()
    if damage == "missing":
        cluttered.unlink()
    else:
        cluttered.write_bytes({"truncated": data[: len(data) // 2], "text": b"not a model", "empty": b""}[damage])
    for read in (weight_bytes, strip, lambda path: open_session(path, 1, given=True)):
        with pytest.raises(InputError) as caught:
            read(cluttered)
        assert caught.value.field == "model"
        assert "\n" not in str(caught.value)


def test_predictors_say_what_is_missing_and_what_fails(cluttered):
    predict = session_predictor(open_session(cluttered, 1))
    with pytest.raises(InputError, match="x: the model needs this input"):
        predict({"pixels": np.zeros((1, 4), np.float32)})
    with pytest.raises(RunFailed, match=r"ONNX Runtime failed on x \[1, 5\]"):
        predict({"x": np.zeros((1, 5), np.float32)})


def test_sessions_do_not_spin(cluttered):
    options = open_session(cluttered, 2).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 2

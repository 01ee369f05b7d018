import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends import processor
from backends.onnx.fusion import runtime_optimized
from backends.onnx.session import EXACT_INTEGERS, open_session, session_options


@pytest.mark.parametrize(
    ("machine", "flags", "dot", "overflow"),
    [
        ("x86_64", {"avx2"}, False, True),
        ("x86_64", {"avx2", "avx512f"}, False, True),
        ("AMD64", {"avx2", "avx_vnni"}, True, False),
        ("x86_64", {"avx2", "avx512_vnni"}, True, False),
        ("x86_64", set(), False, True),
        ("aarch64", {"asimddp"}, True, False),
        ("aarch64", set(), False, False),
    ],
)
def test_sums_of_integers_overflow_on_x86_without_vnni(monkeypatch, machine, flags, dot, overflow):
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    monkeypatch.setattr(processor, "cpu_flags", lambda: frozenset(flags))
    assert processor.has_int8_dot() is dot
    assert processor.int8_sums_overflow() is overflow
    assert asks_for_exact_kernels(session_options(1)) is overflow


def asks_for_exact_kernels(options):
    try:
        return options.get_session_config_entry(EXACT_INTEGERS) == "1"
    except RuntimeError:  # not set
        return False


@pytest.fixture
def largest_sums(tmp_path):
    """codes [4, 64] -> codes · weight [64, 8], every number of the weight at an end of its range."""
    weight = np.where(np.arange(512).reshape(64, 8) % 3, 127, -127).astype(np.int8)
    node = helper.make_node("MatMulInteger", ["codes", "weight"], ["sums"])
    codes = helper.make_tensor_value_info("codes", TensorProto.UINT8, [4, 64])
    sums = helper.make_tensor_value_info("sums", TensorProto.INT32, [4, 8])
    graph = helper.make_graph([node], "product", [codes], [sums], [numpy_helper.from_array(weight, "weight")])
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path, weight


def test_the_largest_sums_of_integers_are_exact(largest_sums):
    path, weight = largest_sums
    codes = np.full((4, 64), 255, np.uint8)
    sums = open_session(path, 1).run(None, {"codes": codes})[0]
    np.testing.assert_array_equal(sums, codes.astype(np.int32) @ weight.astype(np.int32))


def test_a_file_is_optimized_for_any_processor(largest_sums, tmp_path):
    path, weight = largest_sums
    runtime_optimized(path, tmp_path / "optimized.onnx")
    stored = [numpy_helper.to_array(i) for i in onnx.load(tmp_path / "optimized.onnx").graph.initializer]
    assert any(array.dtype == np.int8 and np.array_equal(array, weight) for array in stored)

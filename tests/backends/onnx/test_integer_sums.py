"""Sums of 8-bit products are exact on any processor, and files that cannot have that still work."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends import processor
from backends.onnx.environment import environment
from backends.onnx.fusion import runtime_optimized
from backends.onnx.integer_sums import by_option, has_option
from backends.onnx.session import open_session
from knowledge.values import RunFailed

OVERFLOWS = processor.int8_sums_overflow()
WEIGHT = np.where(np.arange(512).reshape(64, 8) % 3, 127, -127).astype(np.int8)  # every number at an end of its range
ONES, ZEROS = np.ones(8, np.float32), np.zeros(8, np.int8)


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
def test_sums_overflow_on_x86_without_vnni(monkeypatch, machine, flags, dot, overflow):
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    monkeypatch.setattr(processor, "cpu_flags", lambda: frozenset(flags))
    assert processor.has_int8_dot() is dot
    assert processor.int8_sums_overflow() is overflow


def file_of(path, nodes, constants, opset=20):
    """x [4, 64] of float32 -> y, by `nodes`."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    ends[0].type.tensor_type.shape.CopyFrom(helper.make_tensor_value_info("x", 1, [4, 64]).type.tensor_type.shape)
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


def rounded(x, y):
    """To 8 bits and back, in steps of one."""
    grid = ["one", "zero"]
    return [
        helper.make_node("QuantizeLinear", [x, *grid], [f"{y}_codes"]),
        helper.make_node("DequantizeLinear", [f"{y}_codes", *grid], [y]),
    ]


GRID = {"one": np.float32(1), "zero": np.uint8(0), "w": WEIGHT, "scales": ONES, "zeros": ZEROS}


def integer_product(path):
    nodes = [
        helper.make_node("Cast", ["x"], ["codes"], to=TensorProto.UINT8),
        helper.make_node("MatMulInteger", ["codes", "w"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["y"], to=TensorProto.FLOAT),
    ]
    return file_of(path, nodes, {"w": WEIGHT})


def dequantized_product(path):
    wide = helper.make_node("DequantizeLinear", ["w", "scales", "zeros"], ["wide"], axis=1)
    return file_of(path, [*rounded("x", "r"), wide, helper.make_node("MatMul", ["r", "wide"], ["y"])], GRID)


def shared_weight(path):
    """Two products with one weight: the runtime's rewriting refuses to load it."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["double"]),
        helper.make_node("Cast", ["x"], ["codes"], to=TensorProto.UINT8),
        helper.make_node("Cast", ["double"], ["double_codes"], to=TensorProto.UINT8),
        helper.make_node("MatMulInteger", ["codes", "w"], ["sums"]),
        helper.make_node("MatMulInteger", ["double_codes", "w"], ["double_sums"]),
        helper.make_node("Sub", ["double_sums", "sums"], ["difference"]),
        helper.make_node("Cast", ["difference"], ["y"], to=TensorProto.FLOAT),
    ]
    return file_of(path, nodes, {"w": WEIGHT})


def bare_codes(path):
    """A weight by channel without zero point that no kernel fuses: the rewritten file loads and does not run."""
    nodes = [
        *rounded("x", "r"),
        helper.make_node("Greater", ["r", "one"], ["above"]),
        helper.make_node("Not", ["above"], ["within"]),
        helper.make_node("DequantizeLinear", ["w", "scales"], ["wide"], axis=1),
        helper.make_node("Transpose", ["within"], ["columns"]),  # [64, 4]
        helper.make_node("Gather", ["columns", "first"], ["column"], axis=1),  # [64, 1]
        helper.make_node("Where", ["column", "wide", "one"], ["chosen"]),
        helper.make_node("MatMul", ["r", "chosen"], ["y"]),
    ]
    return file_of(path, nodes, GRID | {"first": np.zeros(1, np.int64)})


@pytest.mark.parametrize("write", [integer_product, dequantized_product])
def test_the_largest_sums_are_exact(write, tmp_path):
    session = open_session(write(tmp_path / "model.onnx"), 1)
    x = np.full((4, 64), 255, np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x @ WEIGHT.astype(np.float32))
    assert has_option(session) is OVERFLOWS
    assert environment(1, session).integer_sums == ("exact by option" if OVERFLOWS else "exact")


@pytest.mark.parametrize("write", [shared_weight, bare_codes])
def test_files_that_do_not_bear_the_option_are_opened_without_it(write, tmp_path):
    session = open_session(write(tmp_path / "model.onnx"), 1)
    x = np.ones((4, 64), np.float32)  # sums so small that they fit
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x @ WEIGHT.astype(np.float32))
    assert not has_option(session)
    assert environment(1, session).integer_sums == ("may overflow" if OVERFLOWS else "exact")


def test_float_files_and_broken_ones_are_not_tried(tmp_path):
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    plain = file_of(tmp_path / "plain.onnx", [product], {"w": WEIGHT.astype(np.float32)})
    broken, empty = tmp_path / "broken.onnx", tmp_path / "empty.onnx"
    broken.write_bytes(b"QuantizeLinear")
    empty.touch()
    assert not any(by_option(path) for path in (plain, broken, empty, tmp_path / "absent.onnx"))
    with pytest.raises(RunFailed, match="cannot load"):
        open_session(broken, 1)


def test_a_file_is_optimized_for_any_processor(tmp_path):
    runtime_optimized(integer_product(tmp_path / "model.onnx"), tmp_path / "optimized.onnx")
    stored = [numpy_helper.to_array(i) for i in onnx.load(tmp_path / "optimized.onnx").graph.initializer]
    assert any(array.dtype == np.int8 and np.array_equal(array, WEIGHT) for array in stored)

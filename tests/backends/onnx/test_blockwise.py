"""Single layers in groups of a few bits: ONNX Runtime against the numbers that the groups stand for."""

import numpy as np
import onnx
import pytest
import torch
from grouped import graph_file
from onnx import helper

from backends.onnx import graph as graphs
from backends.onnx.blockwise import SIZES, Blocks, Nf4Blocks, matrices, store_blocks, store_nf4
from backends.onnx.session import open_session
from backends.profile_onnx import profile_onnx
from backends.quantize import grid

ENTRIES, OUTPUTS = 40, 24


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dense_file(path, inputs, gemm=False):
    """y = x · w + b, as the exporter writes it: MatMul on [inputs, outputs], or Gemm on [outputs, inputs]."""
    weight, bias = random(OUTPUTS, inputs), random(OUTPUTS, seed=1)
    if gemm:
        nodes = [helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"], transB=1)]
        return graph_file(path, nodes, {"fc.weight": weight, "fc.bias": bias}, ("x", np.float32, ["rows", inputs]))
    nodes = [
        helper.make_node("MatMul", ["x", "fc.weight"], ["p"]),
        helper.make_node("Add", ["p", "fc.bias"], ["y"]),
    ]
    shape = ("x", np.float32, ["batch", "rows", inputs])
    return graph_file(path, nodes, {"fc.weight": weight.T.copy(), "fc.bias": bias}, shape)


def stored_in(path, out, store):
    """The file with its only matrix stored by `store`, which returns what it stored."""
    model = graphs.load(path)
    (matrix,) = matrices(model.graph)
    blocks = store(matrix)
    graphs.save(model, out)
    onnx.checker.check_model(onnx.load(out))
    return blocks


def run(path, **feed):
    return open_session(path, 1).run(None, feed)[0]


def scale_of_difference(got, expected):
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("inputs", [128, 77])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_products_are_those_of_the_rounded_weight(bits, symmetric, size, inputs, tmp_path):
    path, out = dense_file(tmp_path / "m.onnx", inputs), tmp_path / "q.onnx"
    weight, bias = torch.from_numpy(random(OUTPUTS, inputs)), random(OUTPUTS, seed=1)
    expected = grid.dequantize(*grid.quantize(weight, bits, size, symmetric), size).numpy().T
    for level, tolerance in ((0, 1e-5), (4, 2e-2)):

        def store(matrix, level=level):
            blocks = Blocks.nearest(matrix.rows, bits, size, symmetric)
            store_blocks(matrix, blocks, level)
            return blocks

        blocks = stored_in(path, out, store)
        np.testing.assert_array_equal(blocks.rows.numpy().T, expected)
        for batch, rows in ((1, 1), (2, 3), (1, 40)):
            x = random(batch, rows, inputs, seed=rows)
            assert scale_of_difference(run(out, x=x), x @ expected + bias) < tolerance
    table = profile_onnx(out)
    row = table.rows()[table.index("fc")]
    form = blocks.format
    assert {name: row[name] for name in ("bits", "group_size", "scale_bits", "zero_bits")} == {
        "bits": 4 if bits == 3 else bits, "group_size": size, "scale_bits": 32,
        "zero_bits": 0 if symmetric else form.bits,
    }  # fmt: skip
    assert (row["outputs"], row["inputs"], row["bias"]) == (OUTPUTS, inputs, OUTPUTS)
    assert form.model_dump().items() <= row.items()
    weights = sum(t.nbytes for t in (v.const_value for v in graphs.load(out).graph.initializers.values()))
    assert table.stored_bytes == weights


def test_gemm_with_its_own_bias(tmp_path):
    path, out = dense_file(tmp_path / "m.onnx", 64, gemm=True), tmp_path / "q.onnx"
    blocks = stored_in(path, out, lambda m: put(m, Blocks.nearest(m.rows, 4, 32, False)))
    x = random(5, 64)
    assert scale_of_difference(run(out, x=x), x @ blocks.rows.numpy().T + random(OUTPUTS, seed=1)) < 1e-5


def put(matrix, blocks, level=0):
    if isinstance(blocks, Nf4Blocks):
        store_nf4(matrix, blocks)
    else:
        store_blocks(matrix, blocks, level)
    return blocks


@pytest.mark.parametrize("inputs", [256, 768])
@pytest.mark.parametrize("size", SIZES)
def test_nf4_products_are_those_of_the_rounded_weight(size, inputs, tmp_path):
    path, out = dense_file(tmp_path / "m.onnx", inputs), tmp_path / "q.onnx"
    blocks = stored_in(path, out, lambda m: put(m, Nf4Blocks.nearest(m.rows, size)))
    for rows in (1, 40):
        x = random(1, rows, inputs, seed=rows)
        expected = x @ blocks.rows.numpy().T + random(OUTPUTS, seed=1)
        assert scale_of_difference(run(out, x=x), expected) < 1e-5
    table = profile_onnx(out)
    assert blocks.format.model_dump().items() <= table.rows()[table.index("fc")].items()


def tied_file(path, width=64):
    """A lookup, and a product with the same table transposed."""
    nodes = [
        helper.make_node("Gather", ["embed.weight", "ids"], ["e"], axis=0),
        helper.make_node("Transpose", ["embed.weight"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "t"], ["y"]),
    ]
    return graph_file(path, nodes, {"embed.weight": random(ENTRIES, width)}, ("ids", np.int64, ["batch", "time"]))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_head_reads_the_bytes_that_its_embedding_looks_up(bits, symmetric, tmp_path):
    path, out = tied_file(tmp_path / "m.onnx"), tmp_path / "q.onnx"
    blocks = stored_in(path, out, lambda m: put(m, Blocks.nearest(m.rows, bits, 16, symmetric)))
    ids = np.random.default_rng(0).integers(0, ENTRIES, (2, 7))
    rows = blocks.rows.numpy()
    assert scale_of_difference(run(out, ids=ids), rows[ids] @ rows.T) < 1e-5
    stored = {name: v.const_value for name, v in graphs.load(out).graph.initializers.items() if "embed" in name}
    numbers = {"embed.weight": ENTRIES * 64 * bits // 8, "embed.weight_scale": ENTRIES * 4 * 4}
    zeros = {} if symmetric else {"embed.weight_zero": ENTRIES * 4 * bits // 8}
    assert {name: tensor.nbytes for name, tensor in stored.items()} == numbers | zeros
    table = profile_onnx(out)
    head = table.rows()[-1] if table.kind[-1] == "linear" else table.rows()[1]
    assert (head["tied_to"], head["role"], head["bits"]) == ("embed", "head", bits)
    assert table.parameters == ENTRIES * 64 + 3  # the shape that the head's bytes take


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_lookups_alone(bits, size, tmp_path):
    nodes = [helper.make_node("Gather", ["embed.weight", "ids"], ["y"], axis=0)]
    table = {"embed.weight": random(ENTRIES, 192)}
    path = graph_file(tmp_path / "m.onnx", nodes, table, ("ids", np.int64, ["batch", "time"]))
    blocks = stored_in(path, tmp_path / "q.onnx", lambda m: put(m, Blocks.nearest(m.rows, bits, size, False)))
    ids = np.random.default_rng(0).integers(0, ENTRIES, (2, 7))
    np.testing.assert_allclose(run(tmp_path / "q.onnx", ids=ids), blocks.rows.numpy()[ids], atol=1e-6)


def test_given_codes_are_stored_as_they_are(tmp_path):
    """As ways of rounding that look at data leave them: numbers on a grid that is not the nearest one's."""
    path, out = dense_file(tmp_path / "m.onnx", 64), tmp_path / "q.onnx"
    scales, zeros = torch.rand(OUTPUTS, 2) + 0.1, torch.randint(0, 16, (OUTPUTS, 2)).to(torch.uint8)
    codes = torch.randint(0, 16, (OUTPUTS, 64)).to(torch.uint8)
    rows = grid.dequantize(codes, scales, zeros, 32)
    blocks = Blocks.on_grid(rows, scales, zeros.float(), 4, 32, symmetric=False)
    assert torch.equal(blocks.codes, codes)
    stored_in(path, out, lambda m: put(m, blocks))
    x = random(1, 3, 64)
    assert scale_of_difference(run(out, x=x), x @ rows.numpy().T + random(OUTPUTS, seed=1)) < 1e-5


def test_weights_that_old_exporters_list_as_inputs(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "fc.weight"], ["y"])]
    stored = {"fc.weight": random(64, OUTPUTS)}
    path = graph_file(tmp_path / "m.onnx", nodes, stored, ("x", np.float32, ["rows", 64]), listed=["fc.weight"])
    stored_in(path, tmp_path / "q.onnx", lambda m: put(m, Blocks.nearest(m.rows, 4, 32, False)))
    assert [i.name for i in open_session(tmp_path / "q.onnx", 1).get_inputs()] == ["x"]


def test_a_matrix_that_something_else_reads_too_says_so(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w.weight"], ["p"]),
        helper.make_node("Transpose", ["w.weight"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["p", "t"], ["q"]),
        helper.make_node("MatMul", ["q", "v.weight"], ["r"]),
        helper.make_node("Add", ["r", "v.weight"], ["y"]),
    ]
    stored = {"w.weight": random(64, 64), "v.weight": random(64, 64)}
    path = graph_file(tmp_path / "m.onnx", nodes, stored, ("x", np.float32, ["rows", 64]))
    found = {m.name: m.obstacle for m in matrices(graphs.load(path).graph)}
    assert found == {"w.weight": "is multiplied by as it is and transposed", "v.weight": "is read by Add too"}


def test_sizes_and_zero_points_that_no_kernel_has_are_refused():
    rows = torch.from_numpy(random(8, 48))
    with pytest.raises(ValueError, match="groups of 48"):
        Blocks.nearest(rows, 4, 48, False)
    codes, scales, zeros = grid.quantize(rows, 4, 16, False)
    with pytest.raises(ValueError, match="lie in its middle"):
        Blocks(codes, scales, zeros, 4, 16, symmetric=True)

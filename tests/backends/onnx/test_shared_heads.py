"""Queries that share keys and values are multiplied with them at once: the same sums, without copies."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from backends.onnx import graph as graphs
from backends.onnx.cache_names import PAST
from backends.onnx.export import export
from backends.onnx.session import open_session
from backends.onnx.shared_heads import multiply_shared_heads
from knowledge.values import Workload

BATCH, GROUPS, COPIES, ROWS, KEYS, WIDTH = 2, 2, 3, 4, 5, 8
HEADS = GROUPS * COPIES


def kinds(path):
    return [node.op_type for node in graphs.load(path).graph]


def attended(*, keys="b", queries="b", joined=HEADS, turn=(0, 1, 3, 2), shapes=True):
    """Scores of queries against repeated keys, and their sums of repeated values, with the shapes of an exporter."""
    q, k = (
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        for name, shape in (("q", [queries, HEADS, "t", WIDTH]), ("k", [keys, GROUPS, "n", WIDTH]))
    )
    graph = ir.Graph([q, k], [], nodes=[], opset_imports={"": 20}, name="g")

    def add(op_type, inputs, shape, **attributes):
        attrs = ir.convenience.convert_attributes(attributes)
        node = ir.Node("", op_type, inputs, attrs)
        graph.append(node)
        value = node.outputs[0]
        value.name, value.type = f"v{len(graph)}", ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape(shape) if shapes else None
        return value

    axis, sizes, flat = (
        graphs.add_constant(graph, name, np.array(array, np.int64))
        for name, array in (("axis", [2]), ("sizes", [1, 1, COPIES, 1, 1]), ("flat", [0, joined, -1, WIDTH]))
    )
    scale = graphs.add_constant(graph, "scale", np.float32(0.25))
    single = add("Unsqueeze", [k, axis], [keys, GROUPS, 1, "n", WIDTH])
    copied = add("Expand", [single, sizes], ["b", GROUPS, COPIES, "n", WIDTH])
    repeated = add("Reshape", [copied, flat], ["b", joined, "n", WIDTH])
    turned_shape = [["b", joined, "n", WIDTH][axis] for axis in turn]
    turned = add("Transpose", [repeated], turned_shape, perm=list(turn))
    scores = add("MatMul", [q, turned], ["b", HEADS, "t", "n"])
    scaled = add("Mul", [scores, scale], ["b", HEADS, "t", "n"])
    weights = add("Softmax", [scaled], ["b", HEADS, "t", "n"], axis=-1)
    graph.outputs.append(add("MatMul", [weights, repeated], ["b", HEADS, "t", WIDTH]))
    return ir.Model(graph, ir_version=10)


def computed(model, **feed):
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def random_feed(rows=ROWS, batch=BATCH):
    rng = np.random.default_rng(0)
    shapes = {"q": (batch, HEADS, rows, WIDTH), "k": (batch, GROUPS, KEYS, WIDTH)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def by_loops(q, k):
    """Every query head against the head of its group."""
    found = np.empty_like(q)
    for sample in range(len(q)):
        for head in range(HEADS):
            keys = k[sample, head // COPIES]
            scores = np.exp(0.25 * q[sample, head] @ keys.T)
            found[sample, head] = scores / scores.sum(-1, keepdims=True) @ keys
    return found


@pytest.mark.parametrize(("rows", "batch"), [(ROWS, BATCH), (1, 1), (1, 3)])
def test_scores_and_sums_are_those_of_the_loops(rows, batch):
    model, feed = attended(), random_feed(rows, batch)
    assert multiply_shared_heads(model.graph) == 2
    np.testing.assert_allclose(computed(model, **feed), by_loops(**feed), rtol=1e-5, atol=1e-6)


def test_nothing_is_copied_and_the_scale_stays_beside_its_product():
    """The runtime makes one kernel of a product and the scale behind it."""
    model = attended()
    multiply_shared_heads(model.graph)
    RemoveUnusedNodesPass()(model)
    sums = ["Reshape", "MatMul", "Reshape"]
    expected = ["Transpose", "Reshape", "MatMul", "Mul", "Reshape", "Softmax", *sums]
    assert [node.op_type for node in model.graph] == expected


@pytest.mark.parametrize(
    ("changes", "rewritten"),
    [
        ({"keys": 1}, 0),  # copied for every sample too
        ({"queries": 1}, 1),  # the weights are of every sample
        ({"joined": HEADS // 2}, 0),
        ({"turn": (0, 3, 1, 2)}, 1),
        ({"shapes": False}, 0),
    ],
    ids=["keys of one sample", "queries of one sample", "other heads", "turned otherwise", "no shapes"],
)
def test_what_is_not_surely_the_same_stays(changes, rewritten):
    model = attended(**changes)
    before = [node.op_type for node in model.graph]
    assert multiply_shared_heads(model.graph) == rewritten
    after = [node.op_type for node in model.graph]
    assert after == before if not rewritten else after[: before.index("Softmax")] == before[: before.index("Softmax")]


# -- exports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_exports_copy_no_heads_and_compute_the_same(exported, outputs, tmp_path, monkeypatch, kind):
    found = exported(kind)
    monkeypatch.setattr("backends.onnx.export.multiply_shared_heads", lambda graph: 0)
    copying = tmp_path / "copying.onnx"
    export(found.model, copying, Workload(seq_len=12, threads=1))
    blocks = found.model.info.blocks
    assert kinds(copying).count("Expand") - kinds(found.path).count("Expand") == 2 * blocks
    np.testing.assert_allclose(outputs(found.path, found.split), outputs(copying, found.split), atol=1e-5)
    np.testing.assert_allclose(*(behind_a_cache(path, found) for path in (found.path, copying)), atol=1e-5)


def behind_a_cache(path, found):
    """Logits of two padded texts' next tokens."""
    session = open_session(path, 1)
    rng = np.random.default_rng(1)
    mask = np.ones((2, 8), np.int64)
    mask[1, :3] = 0
    feed = {"input_ids": rng.integers(0, found.model.info.vocab_size, (2, 1)), "attention_mask": mask}
    for spec in session.get_inputs():
        if spec.name.startswith(PAST):
            feed[spec.name] = rng.standard_normal((2, spec.shape[1], 7, spec.shape[3])).astype(np.float32)
    return session.run(None, feed)[0]


def test_a_model_whose_queries_share_nothing_is_left_alone(exported, monkeypatch, tmp_path):
    found = exported("gpt2")
    monkeypatch.setattr("backends.onnx.export.multiply_shared_heads", lambda graph: 0)
    export(found.model, tmp_path / "plain.onnx", Workload(seq_len=12, threads=1))
    assert (tmp_path / "plain.onnx").read_bytes() == found.path.read_bytes()

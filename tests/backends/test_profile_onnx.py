"""ONNX files as tables: bytes against the file's own tensors, rows against the torch profile of the exported model."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from backends.onnx.export import export
from backends.onnx.weights import weight_bytes
from backends.profile import profile
from backends.profile_onnx import profile_onnx
from knowledge.deploy import deployed
from knowledge.values import InputError, Workload

WORKLOAD = Workload(seq_len=12)
MODELS = ("cnn", "lstm", "llama", "gpt2", "bert", "mixtral")


@pytest.fixture(scope="module")
def made():
    """Files exported so far, by name."""
    return {}


@pytest.fixture
def exported(small, made, tmp_path_factory):
    def get(name):
        if name not in made:
            makers = {"cnn": small.cnn, "lstm": small.lstm}
            model = makers[name]() if name in makers else small.transformer(name, blocks=2)
            with torch.no_grad():  # exporters store equal tensors once, and fresh norms are all ones
                for parameter in model.module.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
            path = tmp_path_factory.mktemp(name) / "model.onnx"
            export(model, path, WORKLOAD)
            made[name] = (model, path)
        return made[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_a_file_has_the_bytes_and_the_work_of_its_model(name, exported):
    model, path = exported(name)
    file, torch_table = profile_onnx(path, WORKLOAD), deployed(profile(model, WORKLOAD))
    assert file.stored_bytes == weight_bytes(path)
    constants = file.row_bytes[file.choose(lambda p: p not in set(torch_table.path))].sum()
    assert file.stored_bytes - constants == pytest.approx(torch_table.stored_bytes, rel=0.01)
    assert file.macs == torch_table.macs
    assert (file.info.family, file.info.task or "embedding") == (model.info.family, model.info.task)
    assert file.info.blocks == (2 if model.info.heads else 0)
    for row in torch_table.rows():
        if not row["tied_to"] and row["kind"] in ("linear", "conv", "experts"):
            found = file.rows()[file.index(row["path"])]
            for column in (
                "kind",
                "role",
                "block",
                "outputs",
                "inputs",
                "kernel",
                "groups",
                "copies",
                "bias",
                "positions",
            ):
                assert found[column] == row[column], (row["path"], column)


def test_a_tied_head_is_stored_once(exported):
    _, path = exported("gpt2")
    table = profile_onnx(path, WORKLOAD)
    assert table.tied_to[table.role == "head"].tolist() == ["transformer.wte"]


def quantized(path, out, **options):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, out, weight_type=QuantType.QInt8, **options)
    return profile_onnx(out, WORKLOAD)


@pytest.mark.parametrize("per_channel", [False, True])
def test_eight_bit_files(per_channel, exported, tmp_path):
    model, path = exported("llama")
    out = tmp_path / "q.onnx"
    table = quantized(path, out, per_channel=per_channel)
    assert table.stored_bytes == pytest.approx(weight_bytes(out), rel=0.01)
    dense = table.kind == "linear"
    assert set(table.bits[dense]) == {8}
    assert set(table.group_size[dense]) == {0 if per_channel else -1}
    assert table.macs == deployed(profile(model, WORKLOAD)).macs
    assert table.index("model.layers.1.mlp.up_proj") >= 0


def test_four_bit_files(exported, tmp_path):
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model, path = exported("llama")
    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=16, is_symmetric=False)
    quantizer.process()
    out = tmp_path / "q.onnx"
    quantizer.model.save_model_to_file(str(out))
    table = profile_onnx(out, WORKLOAD)
    dense = table.kind == "linear"
    assert table.stored_bytes == pytest.approx(weight_bytes(out), rel=0.01)
    assert set(table.bits[dense]) == {4}
    assert set(table.group_size[dense]) == {16}
    assert set(table.scale_bits[dense]) == {32}
    assert table.parameters == pytest.approx(deployed(profile(model, WORKLOAD)).parameters, rel=0.01)


def graph_file(path, nodes, stored, inputs, outputs):
    ends = [[helper.make_tensor_value_info(*end) for end in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(a, n) for n, a in stored.items()])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_quantize_dequantize_convolutions(tmp_path):
    stored = {
        "c.weight": np.ones((8, 4, 3, 3), np.int8), "c.weight_scale": np.ones(8, np.float32),
        "c.weight_zero": np.zeros(8, np.int8), "c.bias": np.ones(8, np.int32), "s": np.ones(8, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["c.weight", "c.weight_scale", "c.weight_zero"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["c.bias", "s"], ["b"], axis=0),
        helper.make_node("Conv", ["x", "w", "b"], ["y"], group=2, pads=[1, 1, 1, 1]),
    ]
    ends = [("x", TensorProto.FLOAT, ["batch", 8, 6, 6])], [("y", TensorProto.FLOAT, ["batch", 8, 6, 6])]
    path = graph_file(tmp_path / "m.onnx", nodes, stored, *ends)
    table = profile_onnx(path)
    row = table.rows()[table.index("c")]
    assert (row["kind"], row["bits"], row["scale_bits"], row["zero_bits"], row["bias_bits"]) == ("conv", 8, 32, 8, 32)
    assert (row["inputs"], row["groups"], row["positions"]) == (8, 2, 36.0)
    assert table.stored_bytes == weight_bytes(path)


def test_lost_names_are_read_from_the_nodes(tmp_path):
    """The older exporter keeps module paths in node names only."""
    nodes, stored = [], {}
    for block in range(2):
        for i, name in enumerate(("q_proj", "o_proj")):
            weight = f"onnx::MatMul_{2 * block + i}"
            stored[weight] = np.ones((8, 8), np.float32)
            path = f"/model/layers.{block}/self_attn/{name}/MatMul"
            source = f"v{2 * block + i - 1}" if nodes else "x"
            nodes.append(helper.make_node("MatMul", [source, weight], [f"v{2 * block + i}"], name=path))
    ends = [("x", TensorProto.FLOAT, ["batch", "time", 8])], [("v3", TensorProto.FLOAT, ["batch", "time", 8])]
    table = profile_onnx(graph_file(tmp_path / "m.onnx", nodes, stored, *ends), Workload(seq_len=5))
    assert table.role.tolist() == ["attention_q", "attention_o"] * 2
    assert table.block.tolist() == [0, 0, 1, 1]
    assert table.path.tolist() == list(stored)
    assert table.info.family == "transformer"
    assert table.macs == 4 * 64 * 5


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x00garbage")
    for path in (tmp_path / "m.onnx", tmp_path / "nowhere.onnx"):
        with pytest.raises(InputError, match="model: "):
            profile_onnx(path)

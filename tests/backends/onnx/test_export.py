import copy

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from torch import nn

import backends.onnx.export as exporting
from backends.models import InputSpec, LoadedModel, predictor
from backends.onnx import graph as graphs
from backends.onnx.cache import cached
from backends.onnx.export import export
from backends.onnx.session import open_session
from backends.onnx.weights import weight_bytes
from knowledge.layers import ModelInfo
from knowledge.values import RunFailed, Workload

WORKLOAD = Workload(seq_len=12, threads=1)
KINDS = ("cnn", "lstm", "bert", "gpt2", "llama", "mixtral")


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_gives_torch_s_numbers_at_unseen_shapes(kind, exported, small, outputs):
    found = exported(kind)
    split = small.split(found.model, count=5, seed=3, time=7)
    np.testing.assert_allclose(outputs(found.path, split), predictor(found.model)(split.inputs), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_called_by_their_parameters_paths(kind, exported):
    found = exported(kind)
    names = {i.name for i in onnx.load(found.path).graph.initializer}
    large = {n for n, p in found.model.module.named_parameters() if p.dim() >= 2}
    unread = {n for n in large if n.startswith("pooler")}
    paths = {n.removesuffix("_reverse") for n in large - unread}  # both directions of an LSTM are one tensor
    assert paths <= names


@pytest.mark.parametrize("kind", KINDS)
def test_axes_are_dynamic_and_nothing_but_the_computation_is_stored(kind, exported):
    found = exported(kind)
    proto = onnx.load(found.path)
    onnx.checker.check_model(proto)
    wrapper = cached(found.model) if found.model.info.task == "causal-lm" else found.model
    for spec, value in zip(wrapper.inputs, proto.graph.input, strict=True):
        dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert dims == list(spec.shape)
    assert not proto.metadata_props
    assert not proto.graph.value_info
    assert not any(n.metadata_props or n.doc_string or n.name for n in proto.graph.node)
    assert found.path.stat().st_size - weight_bytes(found.path) < 30_000


def test_stored_weights_are_what_the_table_says(exported):
    for kind in ("cnn", "lstm"):
        found = exported(kind)
        assert weight_bytes(found.path) == pytest.approx(found.context.layers.stored_bytes, rel=0.01)


def test_the_same_model_gives_the_same_bytes(small, tmp_path):
    models = {"cnn": small.cnn(), "lstm": small.lstm(), "gpt2": small.transformer("gpt2", blocks=1)}
    for kind, model in models.items():
        for name in ("a", "b"):
            torch.rand(7)
            export(copy.deepcopy(model), tmp_path / f"{kind}-{name}.onnx", WORKLOAD)
        assert (tmp_path / f"{kind}-a.onnx").read_bytes() == (tmp_path / f"{kind}-b.onnx").read_bytes()


def test_tied_weights_are_stored_once(exported):
    found = exported("gpt2")
    table = found.model.module.transformer.wte.weight.detach().numpy()
    arrays = [onnx.numpy_helper.to_array(i) for i in onnx.load(found.path).graph.initializer]
    assert sum(np.array_equal(a, table) or np.array_equal(a, table.T) for a in arrays) == 1


def test_batch_norms_and_lstms_become_one_operator_each(exported):
    cnn = [n.op_type for n in onnx.load(exported("cnn").path).graph.node]
    assert "BatchNormalization" not in cnn
    lstm = [n.op_type for n in onnx.load(exported("lstm").path).graph.node]
    assert lstm.count("LSTM") == 2
    assert "Slice" not in lstm


def test_a_factored_layer_keeps_its_paths(small, tmp_path):
    model = small.cnn()
    fc = model.module.fc
    model.module.fc = nn.Sequential(nn.Linear(fc.in_features, 2, bias=False), nn.Linear(2, fc.out_features))
    export(model, tmp_path / "m.onnx", WORKLOAD)
    names = {i.name for i in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert {"fc.0.weight", "fc.1.weight", "fc.1.bias"} <= names


def test_export_is_silent(small, tmp_path, capfd):
    export(small.cnn(), tmp_path / "m.onnx", WORKLOAD)
    assert capfd.readouterr() == ("", "")


# -- what goes wrong -------------------------------------------------------------------------------


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, sequence):
        steps = [self.fc(sequence[:, i]) for i in range(int(sequence.shape[1]))]  # unrolls the example's length
        return torch.stack(steps, 1).mean(1)


def test_a_frozen_axis_fails_and_is_named(tmp_path):
    spec = (InputSpec("sequence", "float32", ("batch", "sequence", 8)),)
    info = ModelInfo("frozen", "rnn", "sequence-classification", classes=4)
    with pytest.raises(RunFailed, match=r"static shape of 12|axis 'sequence' of input 'sequence' is frozen at 12"):
        export(LoadedModel(Frozen().eval(), info, spec, "tensor", "tests:frozen"), tmp_path / "m.onnx", WORKLOAD)
    assert not (tmp_path / "m.onnx").exists()


def test_read_back_names_a_frozen_axis(exported, small):
    spec = InputSpec("pixels", "float32", ("batch", "channels", 8, 8))
    with pytest.raises(RunFailed, match="axis 'channels' of input 'pixels' is frozen at 1"):
        exporting.check_axes(exported("cnn").path, [spec])


def test_wrong_numbers_fail_and_the_first_module_is_named(small, tmp_path, monkeypatch):
    strip = exporting.strip_model

    def corrupt(model):
        strip(model)
        weight = model.graph.initializers["residual.conv2.weight"]
        weight.const_value = graphs.ir.tensor(graphs.stored(weight) * 1.5, name=weight.name)

    monkeypatch.setattr(exporting, "strip_model", corrupt)
    with pytest.raises(RunFailed, match=r"differ by .* at pixels \[1, 1, 8, 8\]; .*'residual.norm2'"):
        export(small.cnn(), tmp_path / "m.onnx", WORKLOAD)
    assert not (tmp_path / "m.onnx").exists()


def test_what_the_exporter_cannot_do_is_one_line(tmp_path):
    class Odd(nn.Module):
        def forward(self, pixels):
            return torch.linalg.eigvals(pixels @ pixels.transpose(-1, -2)).real

    spec = (InputSpec("pixels", "float32", ("batch", 4, 4)),)
    info = ModelInfo("odd", "cnn", "image-classification", classes=4)
    with pytest.raises(RunFailed) as caught:
        export(LoadedModel(Odd().eval(), info, spec, "tensor", "tests:odd"), tmp_path / "m.onnx", WORKLOAD)
    assert str(caught.value).startswith("export: ")
    assert "\n" not in str(caught.value)


def test_sessions_read_the_axes_back(exported):
    assert {i.shape[0] for i in open_session(exported("llama").path, 1).get_inputs()} == {"batch"}

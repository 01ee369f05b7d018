"""8-bit forms of whole small models: what is integer, what it costs, and that the decision says how it is stored."""

import dataclasses
from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from backends.data import Data
from backends.factorize import svd
from backends.onnx import fp16, int8_dynamic, int8_static
from backends.onnx import smooth as smoothing
from backends.onnx.export import export
from backends.onnx.session import open_session
from backends.onnx.weights import weight_bytes
from backends.profile import profile
from knowledge.deploy import deployed
from knowledge.techniques.factorize import Svd
from knowledge.techniques.quantize import Fp16, Int8Dynamic, Int8Static
from knowledge.values import InputError

CASES = [
    (int8_dynamic, Int8Dynamic(), "lstm"),
    (int8_dynamic, Int8Dynamic(), "bert"),
    (int8_dynamic, Int8Dynamic(smooth=0.5), "gpt2"),
    (int8_dynamic, Int8Dynamic(embeddings=False), "llama"),
    (int8_dynamic, Int8Dynamic(), "mixtral"),
    (int8_static, Int8Static(), "cnn"),
    (int8_static, Int8Static(calibration="percentile"), "cnn"),
    (int8_static, Int8Static(smooth=0.5), "bert"),
    (int8_static, Int8Static(), "gpt2"),
    (int8_static, Int8Static(), "lstm"),
    (fp16, Fp16(), "cnn"),
    (fp16, Fp16(), "lstm"),
    (fp16, Fp16(), "llama"),
]
IDS = [f"{t.id}-{kind}-{i}" for i, (_, t, kind) in enumerate(CASES)]


def operators(path, tmp_path):
    """Operators that the runtime runs."""
    kept = tmp_path / "optimized.onnx"
    open_session(path, 1, optimized_path=kept)
    return Counter(node.op_type for node in onnx.load(kept).graph.node)


def cosine(a, b):
    a, b = a.reshape(-1), b.reshape(-1)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(("module", "technique", "kind"), CASES, ids=IDS)
def test_close_to_the_original_and_stored_as_the_decision_says(module, technique, kind, exported, outputs, tmp_path):
    found = exported(kind)
    out = tmp_path / "out.onnx"
    decision = module.apply(technique, found.path, out, found.context)
    onnx.checker.check_model(onnx.load(out))
    assert cosine(outputs(out, found.split), outputs(found.path, found.split)) > 0.99
    stored = technique.effect(found.context.layers, decision).stored_bytes
    assert stored == pytest.approx(weight_bytes(out), rel=0.01, abs=100)  # a few axes and shapes in models this small
    again = tmp_path / "again.onnx"
    assert module.apply(technique, found.path, again, found.context) == decision
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("module", "technique"),
    [(int8_dynamic, Int8Dynamic()), (int8_dynamic, Int8Dynamic(smooth=0.5)), (int8_static, Int8Static())],
    ids=["dynamic", "smooth", "static"],
)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_thin_layers_of_a_factored_model_become_integers(module, technique, kind, exported, small, outputs, tmp_path):
    """The second of two thin layers reads what the first one, by then replaced, gives."""
    found = exported(kind)
    model = found.model.clone()
    factored, _ = svd.apply(Svd(ratio=0.9, min_width=16), model, small.context(model, found.split))
    path, out = tmp_path / "thin.onnx", tmp_path / "out.onnx"
    export(factored, path, found.context.workload)
    context = dataclasses.replace(found.context, layers=deployed(profile(factored, found.context.workload)))
    decision = module.apply(technique, path, out, context)
    assert cosine(outputs(out, found.split), outputs(path, found.split)) > 0.99
    stored = technique.effect(context.layers, decision).stored_bytes
    assert stored == pytest.approx(weight_bytes(out), rel=0.01, abs=100)


# -- dynamic ---------------------------------------------------------------------------------------


def test_dynamic_products_run_as_integers_and_share_their_input(exported, tmp_path):
    found = exported("bert")
    out = tmp_path / "out.onnx"
    int8_dynamic.apply(Int8Dynamic(), found.path, out, found.context)
    ran = operators(out, tmp_path)
    assert ran["MatMulIntegerToFloat"] + ran["DynamicQuantizeMatMul"] == 2 * 6
    stored = Counter(n.op_type for n in onnx.load(out).graph.node)
    assert stored["DynamicQuantizeLinear"] == 2 * 4  # q, k and v read one


def test_smoothing_helps_where_channels_differ_in_range(exported, small, outputs, tmp_path):
    model = small.transformer("bert", blocks=1, hidden=64, ffn=256, vocab=512)
    with torch.no_grad():  # outliers in two channels, as trained encoders have them
        model.module.encoder.layer[0].attention.output.LayerNorm.weight[:2] *= 60
        model.module.embeddings.LayerNorm.weight[3] *= 60
    path = tmp_path / "m.onnx"
    export(model, path, exported("bert").context.workload)
    context, reference = exported("bert").context, None
    errors = []
    for strength in (0.0, 0.7):
        out = tmp_path / f"{strength}.onnx"
        int8_dynamic.apply(Int8Dynamic(smooth=strength, embeddings=False), path, out, context)
        split = context.data.calibration
        reference = outputs(path, split) if reference is None else reference
        errors.append(np.abs(outputs(out, split) - reference).mean())
    assert errors[1] < 0.6 * errors[0]


def test_smoothing_folds_into_a_norm_that_feeds_only_the_layer(exported, tmp_path, monkeypatch):
    found = exported("gpt2")  # its norms stand before the layers; bert's feed the residual too
    out = tmp_path / "out.onnx"
    monkeypatch.setattr(smoothing, "GAIN", 0)
    monkeypatch.setattr(smoothing, "GAIN_OF_A_MULTIPLICATION", 0)
    int8_dynamic.apply(Int8Dynamic(smooth=0.5), found.path, out, found.context)
    extra = [i.name for i in onnx.load(out).graph.initializer if i.name.endswith("_smooth")]
    assert sorted(n.split(".")[-2] for n in extra) == ["c_proj"] * 4  # not c_attn, not c_fc


def test_a_tied_head_reads_the_8_bit_embedding(exported, tmp_path):
    found = exported("gpt2")
    out = tmp_path / "out.onnx"
    decision = int8_dynamic.apply(Int8Dynamic(), found.path, out, found.context)
    weights = {i.name: i for i in onnx.load(out).graph.initializer}
    assert weights["transformer.wte.weight"].data_type == onnx.TensorProto.INT8
    assert not [n for n, i in weights.items() if i.data_type == onnx.TensorProto.FLOAT and np.prod(i.dims) == 512 * 64]
    assert {"transformer.wte", "lm_head"} <= set(decision.formats)


def test_a_tied_head_stays_float_with_its_embedding(exported, tmp_path):
    found = exported("gpt2")
    out = tmp_path / "out.onnx"
    decision = int8_dynamic.apply(Int8Dynamic(embeddings=False), found.path, out, found.context)
    assert [r.rule for r in decision.skipped] == ["int8-tied-embedding"]
    assert "transformer.wte" not in decision.formats


def test_lstms_run_as_integers(exported, tmp_path):
    found = exported("lstm")
    out = tmp_path / "out.onnx"
    decision = int8_dynamic.apply(Int8Dynamic(), found.path, out, found.context)
    assert operators(out, tmp_path)["DynamicQuantizeLSTM"] == 2
    assert "lstm.weight_hh_l1_reverse" in decision.formats


def test_no_calibration_data_is_bad_input(exported, tmp_path):
    found = exported("bert")
    empty = found.split.head(0)
    context = dataclasses.replace(found.context, data=Data(empty, empty, empty, empty))
    for module, technique in ((int8_dynamic, Int8Dynamic(smooth=0.5)), (int8_static, Int8Static())):
        with pytest.raises(InputError, match="calibration-data"):
            module.apply(technique, found.path, tmp_path / "out.onnx", context)
    assert not (tmp_path / "out.onnx").exists()
    int8_dynamic.apply(Int8Dynamic(), found.path, tmp_path / "out.onnx", context)  # needs none


# -- static ----------------------------------------------------------------------------------------


def test_every_convolution_and_addition_finds_an_integer_kernel(exported, tmp_path):
    found = exported("cnn")
    out = tmp_path / "out.onnx"
    int8_static.apply(Int8Static(), found.path, out, found.context)
    ran = operators(out, tmp_path)
    assert ran["QLinearConv"] == 5
    assert ran["QLinearAdd"] == 1
    assert ran["QGemm"] == 1
    assert ran["Conv"] + ran["Relu"] + ran["Gemm"] == 0
    assert all(i.data_type != onnx.TensorProto.FLOAT or len(i.dims) < 2 for i in onnx.load(out).graph.initializer)


def test_static_recurrent_layers_are_refused_by_name(exported, tmp_path):
    found = exported("lstm")
    decision = int8_static.apply(Int8Static(), found.path, tmp_path / "out.onnx", found.context)
    assert [r.rule for r in decision.skipped] == ["int8-static-recurrent"] * 2
    assert decision.skipped[0].remedy == "int8_dynamic"
    assert set(decision.formats) == {"fc"}


# -- half ------------------------------------------------------------------------------------------


def test_half_precision_halves_the_weights_and_keeps_the_types(exported, tmp_path):
    found = exported("llama")
    out = tmp_path / "out.onnx"
    fp16.apply(Fp16(), found.path, out, found.context)
    assert weight_bytes(out) < 0.51 * weight_bytes(found.path)
    session = open_session(out, 1)
    assert session.get_inputs()[0].type == "tensor(int64)"
    assert session.get_outputs()[0].type == "tensor(float)"
    assert session.get_outputs()[0].shape[:2] == ["batch", "sequence"]

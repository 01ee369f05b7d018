"""Experts in one operator: the numbers of the file, its bytes, and what it is that keeps them in float."""

import copy
import dataclasses

import numpy as np
import onnx
import pytest

from backends.models import predictor
from backends.onnx import experts_int4
from backends.onnx import graph as graphs
from backends.onnx.blockwise import Blocks
from backends.onnx.experts import expert_layers, store_experts
from backends.onnx.on_grids import store_grids
from backends.onnx.refill import refill
from backends.onnx.strip import strip_model
from backends.onnx.weights import weight_bytes
from backends.profile_onnx import profile_onnx
from backends.quantize import by_inputs
from backends.quantize.grid import quantize
from backends.quantize.stored import Grid
from knowledge.formats import stored_as
from knowledge.techniques.calibrated import Awq, Gptq
from knowledge.techniques.mixed import ExpertsInt4
from knowledge.values import RunFailed, Workload

WORKLOAD = Workload(seq_len=12, threads=1)


def difference(got, expected):
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def rounded(layers, bits, group_size, symmetric):
    """Blocks of both stacks of every layer."""
    return [[Blocks.nearest(s.rows, bits, group_size, symmetric) for s in (found.up, found.down)] for found in layers]


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "within"),
    [(4, 16, False, 1e-5), (4, 64, True, 1e-5), (3, 32, True, 1e-5), (8, 32, False, 0.03), (2, 32, False, 0.03)],
)
def test_one_operator_computes_what_the_rounded_stacks_do(
    bits, group_size, symmetric, within, exported, outputs, tmp_path
):
    found = exported("mixtral")
    ours, wide = graphs.load(found.path), graphs.load(found.path)
    layers = expert_layers(ours.graph)
    assert [layer.each for layer in layers] == [2, 2]
    for layer, blocks in zip(layers, rounded(layers, bits, group_size, symmetric), strict=True):
        for stack, block in zip((layer.up, layer.down), blocks, strict=True):
            value = wide.graph.initializers[stack.name]
            value.const_value = graphs.ir.tensor(block.rows.numpy().reshape(stack.shape), name=stack.name)
        store_experts(layer, *blocks, accuracy_level=0)
    graphs.save(wide, tmp_path / "wide.onnx")
    strip_model(ours)
    graphs.save(ours, tmp_path / "ours.onnx")
    assert [n.op_type for n in ours.graph].count("QMoE") == 2
    expected = outputs(tmp_path / "wide.onnx", found.split)
    away = np.abs(outputs(tmp_path / "ours.onnx", found.split) - expected).max(axis=-1) / np.abs(expected).max()
    # 8 and 2 bits are multiplied with activations of 8 bits at every level, and a token may go to other experts for it
    assert (away.max() if bits in (3, 4) else np.median(away)) < within
    assert difference(outputs(found.path, found.split), expected) > 1e-3 / 2**bits  # rounding shows


def test_a_single_token_is_routed_too(exported, outputs, tmp_path):
    found = exported("mixtral")
    technique = ExpertsInt4(group_size=16, dense_bits=32, embedding_bits=32, accuracy_level=0, symmetric=False)
    experts_int4.apply(technique, found.path, tmp_path / "out.onnx", found.context)
    one = dataclasses.replace(found.split, inputs={k: v[1:2, :1] for k, v in found.split.inputs.items()})
    assert difference(outputs(tmp_path / "out.onnx", one), outputs(found.path, one)) < 0.3


def test_the_file_is_what_the_decision_says(exported, tmp_path):
    found, out, technique = exported("mixtral"), tmp_path / "out.onnx", ExpertsInt4(group_size=64)
    layers = found.context.layers
    decision = experts_int4.apply(technique, found.path, out, found.context)
    onnx.checker.check_model(onnx.load(out))
    after, table = technique.effect(layers, decision), profile_onnx(out, WORKLOAD)
    assert after.rows() == technique.effect(layers).rows()
    assert {r.rule for r in decision.skipped} == {"groups-router"}
    assert weight_bytes(found.path) - weight_bytes(out) == pytest.approx(
        layers.stored_bytes - after.stored_bytes, abs=64
    )
    assert (table.info.family, table.macs, table.stored_bytes) == ("moe", layers.macs, weight_bytes(out))
    for path, form in decision.formats.items():
        if not layers.tied_to[layers.index(path)]:
            read = table.rows()[table.index(path)]
            assert {name: read[name] for name in ("bits", "group_size", "scale_bits", "zero_bits")} == {
                "bits": form.bits, "group_size": 64, "scale_bits": 32, "zero_bits": 0,
            }  # fmt: skip


def test_stacks_that_are_read_in_another_way_stay_by_name(exported, tmp_path):
    found = exported("mixtral")
    model = graphs.load(found.path)
    first = next(node for node in model.graph if node.op_type == "Sigmoid")
    graphs.replace(first, graphs.add_before(first, "Tanh", [first.inputs[0]], like=first.outputs[0]))
    graphs.save(model, tmp_path / "other.onnx")
    decision = experts_int4.apply(
        ExpertsInt4(group_size=64), tmp_path / "other.onnx", tmp_path / "out.onnx", found.context
    )
    left = {r.observed for r in decision.skipped if r.rule != "groups-router"}
    assert left == {
        f"model.layers.0.mlp.experts.{part} is not read as gate, up and down projections of chosen experts"
        for part in ("gate_up_proj", "down_proj")
    }
    assert "model.layers.1.mlp.experts.down_proj" in decision.formats


def test_two_widths_in_one_block_are_refused(exported):
    layer = expert_layers(graphs.load(exported("mixtral").path).graph)[0]
    with pytest.raises(ValueError, match="no kernel for processors has two widths"):
        store_experts(layer, *(Blocks.nearest(s.rows, b, 32, True) for s, b in ((layer.up, 4), (layer.down, 8))), 0)


def test_experts_that_are_not_finite_are_named(exported, tmp_path):
    found = exported("mixtral")
    model = graphs.load(found.path)
    value = model.graph.initializers["model.layers.1.mlp.experts.down_proj"]
    array = graphs.stored(value).copy()
    array[2, 3, 4] = np.inf
    value.const_value = graphs.ir.tensor(array, name=value.name)
    graphs.save(model, tmp_path / "broken.onnx")
    with pytest.raises(
        RunFailed, match=r"experts_int4: model\.layers\.1\.mlp\.experts\.down_proj holds numbers that are"
    ):
        experts_int4.apply(ExpertsInt4(group_size=64), tmp_path / "broken.onnx", tmp_path / "out.onnx", found.context)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    "technique",
    [
        Gptq(group_size=32, accuracy_level=0),
        Gptq(group_size=64, bits=3, symmetric=True, reorder=True, embedding_bits=4, accuracy_level=0),
        Awq(group_size=32, bits=3, accuracy_level=0),
        Awq(group_size=16, symmetric=True, embedding_bits=32, accuracy_level=0),
    ],
    ids=lambda technique: f"{technique.id}-{technique.bits}",
)
def test_dense_layers_and_experts_of_one_stage_give_their_numbers_in_the_file(technique, exported, outputs, tmp_path):
    found, out = exported("mixtral"), tmp_path / "out.onnx"
    original = copy.deepcopy(found.model.module)
    changed, decision = by_inputs.apply(technique, found.model, found.context)
    assert refill(found.path, original, changed, out, WORKLOAD)
    layers, warnings = store_grids(out, changed.grids, technique.effect(found.context.layers, decision))
    assert warnings == ()
    assert {r.rule for r in decision.skipped} <= {"groups-router", "calibration-thin"}
    assert difference(outputs(out, found.split), predictor(changed)(found.split.inputs)) < 1e-5
    kinds = [node.op_type for node in graphs.load(out).graph]
    assert (kinds.count("QMoE"), kinds.count("MatMulNBits")) == (2, 8 + (technique.embedding_bits < 32))
    assert layers.stored_bytes == technique.effect(found.context.layers).stored_bytes
    assert layers.stored_bytes == pytest.approx(weight_bytes(out), rel=0.01)
    factors = changed.grids["model.layers.0.mlp.experts.down_proj"].factors
    assert (factors is not None) == (technique.id == "awq")


def test_stacks_on_grids_that_no_operator_takes_stay_by_name(exported, tmp_path):
    found, out = exported("mixtral"), tmp_path / "out.onnx"
    grids = {}
    for name, stack in found.model.module.named_parameters():
        if stack.dim() == 3:
            bits = 8 if name.startswith("model.layers.0.") and name.endswith("down_proj") else 4
            _, scales, zeros = quantize(stack.detach().flatten(0, 1), bits, 32)
            scales, zeros = (part.view(*stack.shape[:2], -1) for part in (scales, zeros))
            grids[name] = Grid(bits, 32, 0, scales, zeros)
    out.write_bytes(found.path.read_bytes())
    rounded = stored_as(found.context.layers, {name: grid.format for name, grid in grids.items()})
    layers, warnings = store_grids(out, grids, rounded)
    left = {f"model.layers.0.mlp.experts.{part}" for part in ("gate_up_proj", "down_proj")}
    why = "is in the file in another form: it stays in float, rounded"
    assert {warning.observed for warning in warnings} == {f"{name} {why}" for name in left}
    assert [node.op_type for node in graphs.load(out).graph].count("QMoE") == 1
    assert {name: layers.bits[layers.index(name)] for name in grids} == {n: 32 if n in left else 4 for n in grids}

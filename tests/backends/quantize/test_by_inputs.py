"""GPTQ and AWQ on the zoo's trained language models: what torch shows is what the file holds."""

import dataclasses

import numpy as np
import pytest
import torch

from backends.models import predictor
from backends.onnx import graph as graphs
from backends.onnx.on_grids import store_grids
from backends.onnx.session import open_session, session_predictor
from backends.quantize.by_inputs import apply
from backends.quantize.grid import dequantize, quantize
from backends.structure import load_checkpoint
from knowledge.techniques.calibrated import Gptq
from knowledge.techniques.catalog import build
from knowledge.values import InputError, Stage


@pytest.fixture(scope="module")
def pipeline(embedded):
    return embedded("stdlib-lm")


def run(pipeline, *stages):
    return list(pipeline.run([build(Stage(technique=name, params=params)) for name, params in stages]))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("gptq", {"bits": 3, "symmetric": True, "reorder": True, "embedding_bits": 4}),
        ("awq", {"bits": 2, "group_size": 32, "embedding_bits": 4}),
        ("sparsegpt", {"bits": 4, "group_size": 64}),
    ],
)
def test_the_file_gives_the_logits_of_the_rounded_model(pipeline, name, params):
    stage, exported = run(pipeline, (name, {**params, "accuracy_level": 0}))
    rounded = load_checkpoint(pipeline.folder(stage))
    batch = next(iter(pipeline.source.data.search.head(8).batches(8)))
    wanted = predictor(rounded)(batch)
    found = session_predictor(open_session(pipeline.file(exported), 1))(batch)
    assert float(np.abs(found - wanted).max()) <= 1e-4 * float(np.abs(wanted).max())
    assert exported.quality.value == pytest.approx(stage.quality.value, rel=1e-5)


def test_experts_that_stay_in_float_do_so_by_name(small):
    for technique, rule in (
        (Gptq(bits=8, accuracy_level=0, group_size=32), "groups-experts-in-integers"),  # its kernel rounds activations
        (Gptq(group_size=64, embedding_bits=32), "experts-whole-groups"),
        (Gptq(group_size=32, include_experts=False), ""),
    ):
        model = small.transformer("mixtral", blocks=1, hidden=96, ffn=64)
        before = model.module.model.layers[0].mlp.experts.down_proj.detach().clone()
        after, decision = apply(technique, model, small.context(model))
        assert torch.equal(after.module.model.layers[0].mlp.experts.down_proj, before)
        assert not any("experts" in name for name in (*after.grids, *decision.formats))
        named = {r.observed: r.rule for r in decision.skipped if "experts" in r.rule}
        widths = {"gate_up_proj": 96, "down_proj": 64} if rule else {}
        stacks = {f"model.layers.0.mlp.experts.{part}": inputs for part, inputs in widths.items()}
        assert named == {f"{path} is a stack of 4 experts, {n} wide": rule for path, n in stacks.items()}


def test_experts_that_no_token_reached_are_told_and_go_by_their_size(small):
    model = small.transformer("mixtral", blocks=1)
    before = model.module.model.layers[0].mlp.experts.down_proj.detach().clone()
    split = small.split(model)
    same = {name: np.ones_like(array) for name, array in split.inputs.items()}  # one token: it goes to two of four
    after, decision = apply(Gptq(group_size=16), model, small.context(model, dataclasses.replace(split, inputs=same)))
    told = [r.observed for r in decision.skipped if r.rule == "calibration-unread"]
    path = "model.layers.0.mlp.experts"
    assert told == [
        f"{path}.{part}: 2 of 4 matrices read no calibration token, or zeros alone, and went by their size"
        for part in ("gate_up_proj", "down_proj")
    ]
    grid = after.grids[f"{path}.down_proj"]
    nearest = [dequantize(*quantize(weight, 4, 16), 16) for weight in before]
    down = after.module.get_parameter(f"{path}.down_proj")
    kept = [torch.equal(one, rounded) for one, rounded in zip(down, nearest, strict=True)]
    assert sorted(kept) == [False, False, True, True]
    assert grid.scales.shape == (4, 32, 4)


def test_four_bits_by_gptq_keep_perplexity_within_a_percent_in_a_third_of_the_bytes(pipeline):
    stage, exported = run(pipeline, ("gptq", {"group_size": 32}))
    nearest = run(pipeline, ("weight_only", {"group_size": 32}))[-1]
    original = pipeline.baseline
    assert exported.quality.value <= 1.01 * original.quality.value
    assert exported.quality.value < nearest.quality.value
    assert exported.file_bytes <= 0.35 * original.file_bytes
    assert stage.decision.skipped == ()


def test_what_is_pruned_stays_zero_when_it_is_rounded(pipeline):
    pruned, rounded, _ = run(pipeline, ("wanda", {"ratio": 0.5}), ("gptq", {"group_size": 32}))
    before, after = (load_checkpoint(pipeline.folder(record)).module.state_dict() for record in (pruned, rounded))
    name = "model.layers.0.mlp.up_proj.weight"
    assert not bool(after[name][before[name] == 0].any())
    assert float((before[name] == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_training_behind_rounding_is_refused(pipeline):
    with pytest.raises(InputError, match=r"^stages: finetune: does not apply: weights that are rounded.*train before"):
        run(pipeline, ("gptq", {"group_size": 32}), ("finetune", {"epochs": 1}))


def test_a_checkpoint_without_its_grids_is_named(pipeline, tmp_path):
    stage, _ = run(pipeline, ("gptq", {"group_size": 32}))
    for file in pipeline.folder(stage).iterdir():
        if file.name != "grids.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"grids\.safetensors: no such file; run the plan again"):
        load_checkpoint(tmp_path)
    (tmp_path / "grids.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(InputError, match=r"grids\.safetensors: unreadable: .*; delete it and run the plan again"):
        load_checkpoint(tmp_path)


def test_a_model_in_memory_is_as_the_one_read_back(pipeline):
    stage, _ = run(pipeline, ("gptq", {"group_size": 32}))
    grids = load_checkpoint(pipeline.folder(stage)).grids
    up = grids["model.layers.0.mlp.up_proj.weight"]
    assert (up.bits, up.group_size) == (4, 32)
    assert up.scales.dtype == torch.float32
    assert set(up.zeros.flatten().tolist()) <= set(range(16))


def test_a_weight_that_the_file_holds_in_another_form_is_named_and_counted_in_float(pipeline, tmp_path):
    stage, _ = run(pipeline, ("gptq", {"group_size": 32}))
    model = load_checkpoint(pipeline.folder(stage))
    path, name = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj.weight"
    graph = graphs.load(pipeline.file(pipeline.baseline))
    for value in list(graph.graph.initializers.values()):
        if graphs.name_of(value) == name:
            graph.graph.initializers.pop(name)
            value.name = "folded"
            graph.graph.initializers["folded"] = value
    graphs.save(graph, tmp_path / "model.onnx")
    grids = {one: model.grids[one] for one in (name, "model.layers.0.mlp.gate_proj.weight")}
    layers, warnings = store_grids(tmp_path / "model.onnx", grids, stage.layers)
    assert [w.observed for w in warnings] == [f"{name} is in the file in another form: it stays in float, rounded"]
    assert layers.bits[layers.path == path].tolist() == [32]
    assert layers.bits[layers.path == "model.layers.0.mlp.gate_proj"].tolist() == [4]

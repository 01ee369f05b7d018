"""Bits by what each layer loses: measured once, solved for any size, and no larger than it was expected to be."""

import dataclasses

import numpy as np
import onnx
import pytest

from backends.data import Data, Split
from backends.onnx import graph as graphs
from backends.onnx import mixed
from backends.onnx.blockwise import Blocks, matrices
from backends.onnx.divergence import file_loss
from backends.onnx.experts import expert_layers
from backends.onnx.formats import owners
from backends.onnx.layer_losses import layer_losses
from backends.onnx.weights import weight_bytes
from backends.runner import Pipeline
from backends.store import Store
from knowledge.techniques.mixed import FLOAT, PER_CHANNEL, Form, MixedPrecision
from knowledge.values import Decision, InputError, LayerFormat, RunFailed, Workload


def stored_in(context, folder):
    return dataclasses.replace(context, store=Store(folder))


def rounded_file(path, out, decision, layers):
    """The float file with the numbers that the forms of a decision stand for."""
    model, rows = graphs.load(path), {p: layers.index(p) for p in decision.formats}
    stacks = [stack for found in expert_layers(model.graph) for stack in (found.up, found.down)]
    for one in (*matrices(model.graph), *stacks):
        for owner in owners(one.name, rows)[:1]:
            form = decision.formats[owner]
            found = Blocks.nearest(one.rows, form.bits, form.group_size, symmetric=not form.zero_bits).rows.numpy()
            shape = graphs.stored(one.stored).shape
            turned = len(shape) == 3 or not getattr(one, "products", []) or one.products[0].turned
            one.stored.const_value = graphs.ir.tensor((found if turned else found.T).reshape(shape), name=one.name)
    graphs.save(model, out)
    return out


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "mixtral"])
def test_the_file_computes_with_the_forms_of_the_decision(kind, exported, outputs, tmp_path):
    found, out = exported(kind), tmp_path / "out.onnx"
    technique, layers = MixedPrecision(group_size=32, share=0.6, accuracy_level=0), found.context.layers
    decision = mixed.apply(technique, found.path, out, found.context)
    onnx.checker.check_model(onnx.load(out))
    wide = rounded_file(found.path, tmp_path / "wide.onnx", decision, layers)
    got, expected = outputs(out, found.split), outputs(wide, found.split)
    away = np.abs(got - expected).max(axis=-1) / np.abs(expected).max()
    if kind == "mixtral":  # experts in 8 or 2 bits multiply activations of 8 bits, and a token may go to other experts
        assert np.median(away) < 0.02
    else:
        assert away.max() < 1e-4
    after, aim = technique.effect(layers, decision), technique.effect(layers)
    assert after.stored_bytes <= aim.stored_bytes
    assert weight_bytes(found.path) - weight_bytes(out) == pytest.approx(
        layers.stored_bytes - after.stored_bytes, abs=64
    )
    assert {r.rule for r in decision.skipped} == ({"groups-router"} if kind == "mixtral" else set())


def test_another_size_is_solved_without_measuring_again(exported, tmp_path):
    found = exported("llama")
    context = stored_in(found.context, tmp_path)
    first = layer_losses(MixedPrecision(group_size=32), found.path, context)
    forms = MixedPrecision(group_size=32).forms(context.layers)
    assert first.runs == 10 * sum(map(len, forms.values())) > 0  # 40 samples in batches of 4
    for share, group_size in ((0.5, 32), (1.0, 32), (0.7, 64)):
        again = layer_losses(MixedPrecision(group_size=group_size, share=share), found.path, context)
        assert (again.runs, again.losses) == (0, first.losses)
    other = Split(found.split.inputs).head(20)
    changed = dataclasses.replace(context, data=Data(other, other, other, other))
    assert layer_losses(MixedPrecision(group_size=32), found.path, changed).runs > 0


def test_the_program_loses_no_more_than_the_middle_of_the_model_in_as_many_bytes(exported, tmp_path):
    found = exported("llama")
    context = stored_in(found.context, tmp_path)
    layers, gained = context.layers, []
    for share in (0.3, 0.5, 0.7, 1.0):
        technique = MixedPrecision(group_size=64, share=share)
        losses = layer_losses(technique, found.path, context).losses
        chosen, expected = mixed.chosen_forms(technique, layers, losses), technique.expected(layers)
        sizes = technique.forms(layers)
        assert set(chosen) == set(expected)
        assert sum(sizes[n][f] for n, f in chosen.items()) <= sum(technique.expected_bytes(layers).values())
        middle = [min(loss for form, loss in losses[n].items() if form.bits == f.bits) for n, f in expected.items()]
        gained.append(sum(middle) / sum(losses[n][f] for n, f in chosen.items()))
    assert min(gained) >= 1
    assert max(gained) > 1.2


def test_convolutions_stay_in_float_where_eight_bits_cost_most(exported, outputs, tmp_path):
    found, out = exported("cnn"), tmp_path / "out.onnx"
    layers = found.context.layers
    for share in (0.5, 1.0):
        technique = MixedPrecision(group_size=16, share=share)
        losses = layer_losses(technique, found.path, found.context).losses
        decision = mixed.apply(technique, found.path, out, found.context)
        chosen = mixed.chosen_forms(technique, layers, losses)
        assert {name: name in decision.formats for name in chosen} == {n: f == PER_CHANNEL for n, f in chosen.items()}
        left = [r for r in decision.skipped if r.rule == "mixed-sensitive-layer"]
        assert [r.observed.partition(":")[0] for r in left] == [n for n, f in chosen.items() if f == FLOAT]
        assert weight_bytes(out) == pytest.approx(technique.effect(layers, decision).stored_bytes, rel=0.01)
        assert np.abs(outputs(out, found.split) - outputs(found.path, found.split)).max() < 0.1
    assert not left


def test_a_recurrent_layer_is_stored_as_a_whole(exported, tmp_path):
    found, out = exported("lstm"), tmp_path / "out.onnx"
    technique = MixedPrecision(group_size=16, share=0.6)
    assert list(technique.units(found.context.layers)) == ["lstm.l0", "lstm.l1"]
    decision = mixed.apply(technique, found.path, out, found.context)
    narrow = {path.rpartition("_l")[2][0] for path in decision.formats if path.startswith("lstm.")}
    assert len(narrow) == 1  # of two layers that do not both fit
    assert [r.rule for r in decision.skipped] == ["mixed-sensitive-layer"]
    after = technique.effect(found.context.layers, decision)
    assert weight_bytes(out) == pytest.approx(after.stored_bytes, rel=0.01)


def test_a_limit_on_the_loss_gives_the_smallest_file_within_it(exported, tmp_path):
    found, out = exported("bert"), tmp_path / "out.onnx"
    context, sizes = stored_in(found.context, tmp_path), []
    for limit in (1e-3, 1e-1, 10.0):
        mixed.apply(MixedPrecision(group_size=32, max_loss=limit), found.path, out, context)
        assert file_loss(found.path, out, context) <= limit
        sizes.append(out.stat().st_size)
    assert sizes[0] > sizes[1] > sizes[2]
    smallest = out.read_bytes()
    message = r"^mixed_precision: the widest bits at accuracy_level 4 lose .* already, of 1e-12 that may be lost$"
    with pytest.raises(RunFailed, match=message):
        mixed.apply(MixedPrecision(group_size=32, max_loss=1e-12), found.path, out, context)
    assert (out.read_bytes(), [file.name for file in tmp_path.glob("*.onnx")]) == (smallest, [out.name])


def test_the_program_takes_the_fewest_bytes_within_a_loss(exported, tmp_path):
    found = exported("bert")
    context, technique = stored_in(found.context, tmp_path), MixedPrecision(group_size=32)
    losses, sizes = layer_losses(technique, found.path, context).losses, technique.forms(context.layers)
    taken = []
    for limit in (1e-3, 1e-1, 10.0):
        chosen = mixed.chosen_forms(technique, context.layers, losses, limit)
        assert sum(losses[name][form] for name, form in chosen.items()) <= limit * (1 + 1e-6)
        taken.append(sum(sizes[name][form] for name, form in chosen.items()))
    assert taken[0] > taken[1] > taken[2]


def test_a_file_that_loses_more_than_its_layers_gets_wider_ones(exported, tmp_path, monkeypatch):
    """Beside weights it rounds what layers read."""
    found, out, limit = exported("bert"), tmp_path / "out.onnx", 3e-4
    context, technique = stored_in(found.context, tmp_path), MixedPrecision(group_size=32, max_loss=limit)
    with monkeypatch.context() as patch:
        patch.setattr(mixed, "within", lambda asked, outcome, *bounds: outcome(asked))
        foretold = mixed.apply(technique, found.path, out, context)
    assert file_loss(found.path, out, context) > limit
    kept = mixed.apply(technique, found.path, out, context)
    assert file_loss(found.path, out, context) <= limit
    assert kept.formats != foretold.formats


def test_groups_that_save_nothing_are_no_choice(exported):
    layers = exported("llama").context.layers
    uneven = layers.change(layers.path == "model.layers.0.mlp.up_proj", inputs=192)
    found = MixedPrecision(group_size=32).forms(uneven)
    assert set(found["model.layers.0.mlp.up_proj"]) == {Form(8, 64), Form(4, 64), Form(4, 32), Form(2, 64)}
    assert set(found["model.layers.0.mlp.down_proj"]) == {Form(8, 128), Form(4, 128), Form(4, 64), Form(2, 128)}


def test_nothing_to_calibrate_with_and_outputs_that_are_not_finite_are_told(exported, tmp_path):
    found, out = exported("bert"), tmp_path / "out.onnx"
    none = found.split.head(0)
    empty = dataclasses.replace(found.context, data=Data(found.split, none, found.split, found.split))
    with pytest.raises(InputError, match=r"calibration-data: 0: no samples"):
        mixed.apply(MixedPrecision(group_size=32), found.path, out, empty)
    model = graphs.load(found.path)
    value = next(v for n, v in model.graph.initializers.items() if n.endswith("layer.0.intermediate.dense.weight"))
    value.const_value = graphs.ir.tensor(np.full_like(graphs.stored(value), np.nan), name=value.name)
    graphs.save(model, tmp_path / "broken.onnx")
    with pytest.raises(RunFailed, match=r"the model's outputs on calibration data are not finite"):
        mixed.apply(MixedPrecision(group_size=32), tmp_path / "broken.onnx", out, found.context)
    assert not out.exists()


@pytest.mark.full
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_a_trained_language_model_keeps_more_than_the_middle_of_the_model_in_fewer_bits(share, tmp_path):
    """A share of 1 is 4 bits in groups of 32 everywhere."""
    workload = Workload(seq_len=64, threads=1)
    pipeline = Pipeline.open("zoo:stdlib-lm", workload=workload, seed=0, store=Store(tmp_path))
    source, layers = pipeline.file(pipeline.baseline), pipeline.baseline.layers
    technique = MixedPrecision(group_size=32, share=share, accuracy_level=0)
    *_, ours = pipeline.run([technique])
    plain = technique.effect(layers)
    columns = ("bits", "group_size", "scale_bits", "zero_bits")
    middle = {
        path: LayerFormat(**{name: int(plain.columns[name][plain.index(path)]) for name in columns})
        for path in ours.decision.formats
    }
    wide = rounded_file(source, tmp_path / "middle.onnx", Decision(technique="", formats=middle), layers)
    worse = pipeline.bench.file_quality(wide, "mixed_precision").value - pipeline.baseline.quality.value
    assert weight_bytes(pipeline.file(ours)) <= plain.stored_bytes * 1.01
    assert ours.quality.value - pipeline.baseline.quality.value < 0.8 * worse

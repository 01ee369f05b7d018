import numpy as np
import pytest

from knowledge.layers import LayerTable, ModelInfo, table_from_json, table_to_json
from knowledge.techniques.base import Choices, Family, Level, Range
from knowledge.techniques.catalog import CATALOG
from knowledge.techniques.factorize import Svd
from knowledge.techniques.prune import Magnitude
from knowledge.techniques.quantize import Fp16, Int8Static
from knowledge.techniques.reshape import Channels, LayerDrop, kept_width
from knowledge.typical import build, typical_models
from knowledge.values import Decision, LayerFormat, Shape


def conv(path, outputs, inputs, **more):
    return {"path": path, "kind": "conv", "outputs": outputs, "inputs": inputs, "kernel": 9, "positions": 64} | more


def linear(path, outputs, inputs, **more):
    return {"path": path, "kind": "linear", "outputs": outputs, "inputs": inputs, "positions": 16} | more


CNN = LayerTable.of(
    [
        conv("stem", 32, 3, role="stem"),
        conv("c1", 64, 32),
        {"path": "bn", "kind": "norm", "role": "norm", "outputs": 64, "bias": 64, "buffers": 128},
        conv("dw", 64, 64, groups=64),
        linear("fc", 10, 64, bias=10, role="head"),
    ],
    ModelInfo("cnn", "cnn", "image-classification"),
)
BLOCKS = LayerTable.of(
    [{"path": "embed", "kind": "embedding", "role": "token_embedding", "outputs": 100, "inputs": 64}]
    + [linear(f"layers.{b}.up", 256, 64, role="ffn_up", block=b, bias=256) for b in range(12)],
    ModelInfo("lm", "transformer", "causal-lm", blocks=12),
)


def test_half_the_channels_leave_a_quarter_of_an_inner_convolution():
    half = Channels(ratio=0.5).effect(CNN)
    c1 = half.index("c1")
    assert half.weights[c1] == CNN.weights[c1] / 4
    assert half.outputs.tolist() == [16, 32, 32, 32, 10]
    assert half.inputs.tolist() == [3, 16, 1, 32, 32]
    assert half.groups[half.index("dw")] == 32
    assert half.bias.tolist() == [0, 0, 32, 0, 10]
    assert half.buffers[2] == 64


def test_a_decision_overrules_the_expectation():
    shapes = {"c1": Shape(outputs=40, inputs=32), "bn": Shape(outputs=40, inputs=1)}
    real = Channels().effect(CNN, Decision(technique="channels", shapes=shapes))
    assert real.outputs.tolist() == [32, 40, 40, 64, 10]
    assert real.bias[2] == 40
    assert real.buffers[2] == 80


@pytest.mark.parametrize("width", [1, 3, 4, 7, 32, 100])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("grid", [1, 4, 8])
def test_kept_widths_are_on_the_grid_and_never_vanish(width, ratio, grid):
    kept = int(kept_width(width, ratio, grid))
    assert 0 < kept <= width
    assert kept % grid == 0 or kept == width


def test_dropped_blocks_are_renumbered_by_whole_path_parts():
    dropped = LayerDrop().effect(BLOCKS, Decision(technique="layer_drop", dropped_blocks=(1, 10)))
    assert dropped.info.blocks == 10
    assert dropped.path.tolist() == ["embed"] + [f"layers.{b}.up" for b in range(10)]
    assert dropped.parameters == BLOCKS.parameters - 2 * (256 * 64 + 256)
    assert len(LayerDrop(ratio=0.3).effect(BLOCKS)) == len(BLOCKS) - 4


def test_svd_saves_by_break_even_and_not_by_full_rank():
    square = LayerTable.of([linear("q", 4096, 4096, role="attention_q")], ModelInfo("m", "transformer", "causal-lm"))
    half_of_full = square.change(square.kind == "linear", rank=2048)
    assert half_of_full.parameters == square.parameters  # the seed promises 4×
    factored = Svd(ratio=0.25).effect(square)
    assert factored.rank.tolist() == [512]
    assert square.parameters / factored.parameters == 4


def test_zeros_are_stored_densely():
    sparse = Magnitude(ratio=0.9).effect(CNN)
    assert sparse.stored_bytes == CNN.stored_bytes
    assert sparse.sparsity > 0.85


def test_bytes_of_the_number_formats():
    assert Fp16().effect(CNN).stored_bytes * 2 == CNN.stored_bytes
    t = LayerTable.of([linear("fc", 8, 256)], ModelInfo("m", "cnn", "image-classification"))
    int8 = Int8Static().effect(t)
    assert int8.stored_bytes == 8 * 256 + 8 * (4 + 1)
    groups = {"fc": LayerFormat(bits=4, group_size=128, scale_bits=16)}
    int4 = Int8Static().effect(t, Decision(technique="int8_static", formats=groups))
    assert int4.stored_bytes == 8 * 256 // 2 + 8 * 2 * 2  # 4.125 bits a weight


def test_tied_weights_count_once():
    rows = [
        {"path": "embed", "kind": "embedding", "outputs": 100, "inputs": 64},
        linear("head", 100, 64, tied_to="embed"),
    ]
    assert LayerTable.of(rows, ModelInfo("m", "transformer", "causal-lm")).parameters == 6400


def test_tables_survive_json():
    back = table_from_json(table_to_json(Channels().effect(CNN)))
    assert back.rows() == Channels().effect(CNN).rows()
    assert back.info == CNN.info


def test_unknown_columns_are_refused():
    with pytest.raises(ValueError, match="colour"):
        LayerTable.of([linear("a", 1, 1, colour="red")], CNN.info)
    with pytest.raises(ValueError, match="outputs"):
        LayerTable.of([{"path": "a", "kind": "linear"}], CNN.info)


def test_techniques_refuse_the_wrong_architecture():
    assert [r.rule for r in LayerDrop().refusals(CNN)] == ["technique-architecture"]
    assert [r.rule for r in Channels().refusals(BLOCKS)] == ["technique-architecture"]
    assert list(Channels().refusals(CNN)) == []


@pytest.mark.parametrize("cls", CATALOG.values(), ids=CATALOG)
def test_every_technique_declares_itself(cls):
    assert CATALOG[cls.id] is cls
    assert isinstance(cls.family, Family)
    assert isinstance(cls.level, Level)
    assert cls.summary().endswith((".", ":")) or len(cls.summary()) > 20
    assert cls.paper or cls.lossless
    assert cls.phase is not None or cls.family is Family.RECOVER
    assert not cls.dial or cls.dial in cls.space()
    default = cls()
    assert hash(default) == hash(cls())
    assert default.strength() >= 0
    for name, space in cls.space().items():
        value = getattr(default, name)
        if isinstance(space, Range):
            assert space.low <= value <= space.high
            if space.step:
                assert np.isclose((value - space.low) / space.step % 1, [0, 1]).any()
        elif isinstance(space, Choices):
            assert value in space
    assert cls.model_validate(default.model_dump(mode="json")) == default


@pytest.mark.parametrize("model", typical_models(), ids=lambda m: m.id)
@pytest.mark.parametrize("cls", CATALOG.values(), ids=CATALOG)
def test_no_technique_leaves_more_than_there_was(cls, model):
    table = build(model)
    refusals = list(cls().refusals(table))
    assert len({r.rule for r in refusals}) == len(refusals) <= 1
    assert all(r.technique == cls.id and r.observed and r.required for r in refusals)
    if not refusals:
        after = cls().effect(table)
        assert after.parameters <= table.parameters
        assert after.macs <= table.macs
        assert after.stored_bytes <= table.stored_bytes
        assert cls().touches(table).any()


@pytest.mark.parametrize("model", typical_models(), ids=lambda m: m.id)
@pytest.mark.parametrize("cls", CATALOG.values(), ids=CATALOG)
def test_whatever_is_searched_can_be_built(cls, model):
    table = build(model)
    for name, space in cls.space_for(table).items():
        assert name in cls.space()
        values = (space.low, space.high) if isinstance(space, Range) else space
        assert values
        for value in values:
            technique = cls.model_validate({name: value})
            if not list(technique.refusals(table)):
                assert technique.effect(table).stored_bytes <= table.stored_bytes


def test_what_a_threshold_removes_is_unknown_until_the_weights_are_read():
    unknown = Magnitude(threshold=0.01, ratio=0.9)
    assert unknown.effect(BLOCKS).density.tolist() == BLOCKS.density.tolist()
    assert unknown.strength() == 0
    known = unknown.effect(BLOCKS, Decision(technique="magnitude", density={"layers.3.up": 0.25}))
    assert known.density[known.index("layers.3.up")] == 0.25
    assert Magnitude(ratio=0.9).strength() == 0.9


def test_layers_count_as_whole_until_the_ranks_that_hold_the_energy_are_known():
    unknown = Svd(energy=0.9, ratio=0.2)
    assert unknown.effect(BLOCKS).parameters == BLOCKS.parameters
    assert unknown.strength() == 0
    known = unknown.effect(BLOCKS, Decision(technique="svd", ranks={"layers.3.up": 8}))
    assert known.parameters < BLOCKS.parameters
    assert Svd(ratio=0.2).strength() == pytest.approx(0.8)

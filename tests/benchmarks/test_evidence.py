"""Collecting evidence: what is missing is measured, what is there is not, and a failing chain costs only itself."""

from pathlib import Path

import pytest

from advisor.profile import zoo_table
from backends.store import Store
from backends.zoo import zoo_names
from knowledge.measured import check_rows, read_rows
from knowledge.techniques.catalog import CATALOG

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(scope="module")
def lstm(tmp_path_factory):
    from benchmarks.evidence import open_model

    return open_model("digits-lstm", Store(tmp_path_factory.mktemp("store")))


def test_what_is_known_is_not_measured_again(lstm, tmp_path):
    from benchmarks.evidence import collect

    plan = {"digits-lstm": ["fp16"]}
    (row,) = collect({"digits-lstm": lstm}, plan, tmp_path)
    executed = lstm.executed
    assert list(collect({"digits-lstm": lstm}, plan, tmp_path)) == []
    assert lstm.executed == executed
    assert read_rows(tmp_path / "digits-lstm.json") == (row,)
    check_rows(tmp_path, [row])
    assert row.command == 'python -m benchmarks.evidence --models digits-lstm --chain "fp16"'


def test_a_collection_goes_on_where_it_was_cut_short(lstm, tmp_path):
    from benchmarks.evidence import collect

    plan = {"digits-lstm": ["fp16", "int8_dynamic", "graph_fusion"]}
    cut_short = collect({"digits-lstm": lstm}, plan, tmp_path)
    next(cut_short)
    cut_short.close()
    assert len(read_rows(tmp_path / "digits-lstm.json")) == 1
    assert len(list(collect({"digits-lstm": lstm}, plan, tmp_path))) == 2
    assert len(read_rows(tmp_path / "digits-lstm.json")) == 3


def test_a_row_that_is_asked_for_again_is_replaced(lstm, tmp_path):
    from benchmarks.evidence import collect

    plan = {"digits-lstm": ["fp16"]}
    (first,) = collect({"digits-lstm": lstm}, plan, tmp_path)
    (again,) = collect({"digits-lstm": lstm}, plan, tmp_path, again=True)
    assert (first.id, first.quality, first.size_bytes) == (again.id, again.quality, again.size_bytes)
    assert read_rows(tmp_path / "digits-lstm.json") == (again,)


def test_a_chain_that_fails_is_told_and_costs_the_others_nothing(lstm, tmp_path, capsys):
    from benchmarks.evidence import collect

    plan = {"digits-lstm": ["channels ratio=0.5", "magnitude ratio=7", "fp16"]}
    assert len(list(collect({"digits-lstm": lstm}, plan, tmp_path))) == 1
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 2
    assert "does not apply" in warnings[0]
    assert "ratio" in warnings[1]


def test_no_time_means_no_row(lstm, tmp_path, capsys):
    from benchmarks.evidence import collect

    assert list(collect({"digits-lstm": lstm}, {"digits-lstm": ["fp16"]}, tmp_path, budget_seconds=-1)) == []
    assert "the time is up" in capsys.readouterr().err


@pytest.mark.parametrize("name", zoo_names())
def test_every_model_is_given_chains_that_apply_to_it(name):
    from benchmarks.chains import applies, chains, parse

    layers = zoo_table(name)
    found = chains(layers)
    assert len(set(found)) == len(found) >= 30
    assert all(applies(text, layers) for text in found)
    assert len({str(parse(text, layers)) for text in found}) == len(found)  # no chain is written in two ways


def test_every_runnable_technique_is_measured_somewhere():
    from backends.executors import EXECUTORS
    from benchmarks.chains import chains, parse

    tables = [zoo_table(name) for name in zoo_names()]
    used = {stage.technique for layers in tables for text in chains(layers) for stage in parse(text, layers)}
    assert used >= {cls.id for cls in EXECUTORS}
    assert used <= set(CATALOG)


def test_blocks_are_written_as_a_number_of_this_model():
    from benchmarks.chains import parse
    from knowledge.techniques.catalog import build

    layers = zoo_table("stdlib-lm-large")
    for blocks in (1, 2, 3, 4):
        (stage,) = parse(f"layer_drop blocks={blocks}", layers)
        assert build(stage).dropped(layers.info.blocks) == blocks

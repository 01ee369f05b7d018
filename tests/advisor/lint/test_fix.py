"""What is mechanical is mended for good, and parameters are tried without being written."""

import random
from pathlib import Path

import pytest
import yaml
from linted import CNN, IN_BLOCKS, LM, LSTM, MESSY, PAIRS, SPARSE, VIT, estimate, plan, written

from advisor.lint import Patch, lint_plan
from advisor.lint.fix import patched
from advisor.plans import load_plan
from knowledge.techniques.base import Range
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError


def test_fixing_leaves_nothing_that_could_be_fixed_and_a_plan_that_loads(tmp_path):
    path = written(tmp_path, MESSY)
    said = []
    report = lint_plan(path, fix=True, say=said.append)
    mended = load_plan(path)
    assert [s.technique for s in mended.stages] == ["channels", "finetune", "int8_static"]
    assert mended.stages[1].params["epochs"] > 0
    assert mended.budget.max_size_bytes == 100_000
    assert mended.budget.max_memory_bytes == 10**9  # the target's
    assert not [f for f in report.findings if f.patch is not None]
    assert Path(report.original).read_text() == MESSY
    assert "comments are not kept" in said[0]
    assert any("magnitude was left out" in change for change in report.changes)
    again = lint_plan(path, fix=True)
    assert (again.changes, again.original) == ((), "")
    assert again.findings == report.findings == lint_plan(path).findings


@pytest.mark.parametrize("check", PAIRS)
def test_what_is_mended_stays_mended(check, tmp_path):
    path = written(tmp_path, PAIRS[check][0])
    before = path.read_bytes()
    report = lint_plan(path, fix=True)
    assert not [f for f in report.findings if f.patch is not None]
    assert (path.read_bytes() != before) == bool(report.changes)
    assert lint_plan(path).findings == report.findings


@pytest.mark.parametrize("seed", range(8))
def test_any_chain_can_be_mended_at_once(seed, tmp_path):
    """Techniques at random, in any order, with parameters in and out of their ranges."""
    draw = random.Random(seed)
    chain = []
    for name in draw.sample(list(CATALOG), 4):
        spaces = {n: s for n, s in CATALOG[name].space().items() if draw.random() < 0.5}
        values = {
            n: (s.low, s.high, 2 * s.high, -1) if isinstance(s, Range) else (*s, "odd") for n, s in spaces.items()
        }
        chain.append((name, {n: draw.choice(among) for n, among in values.items()}))
    model, target = draw.choice([CNN, LSTM, VIT, LM]), draw.choice(["server-cpu", "mobile", "a100", SPARSE])
    path = written(tmp_path, plan(*chain, model=model, target=target))
    report = lint_plan(path, fix=True)
    assert not [f for f in report.findings if f.patch is not None]
    assert lint_plan(path).findings == report.findings


def test_an_earlier_original_is_never_overwritten(tmp_path):
    path = written(tmp_path, MESSY)
    first = lint_plan(path, fix=True).original
    path.write_text(MESSY)
    second = lint_plan(path, fix=True).original
    assert first != second
    assert Path(first).read_text() == Path(second).read_text() == MESSY


def test_a_mended_plan_gets_a_fresh_estimate_and_loses_stale_reasons(tmp_path):
    raw = plan("int8_static", ("channels", IN_BLOCKS), estimate=estimate(), reasons=["because"])
    path = written(tmp_path, raw)
    lint_plan(path, fix=True)
    mended = yaml.safe_load(path.read_text())
    assert [s["technique"] for s in mended["stages"]] == ["channels", "finetune", "int8_static"]
    assert "reasons" not in mended
    assert mended["estimate"]["size_bytes"]["mid"] > 10_000


def test_a_choice_is_left_to_the_user(tmp_path):
    path = written(tmp_path, plan("fp16", "int8_static"))
    report = lint_plan(path, fix=True)
    assert report.changes == ()
    assert [f.fix for f in report.findings if f.id == "order"] == ["leave out int8_static or fp16"]
    assert report.exit_code == 1


def test_parameters_are_tried_without_being_written(tmp_path):
    path = written(tmp_path, plan("distill", ("distill", {"compression": 3})))
    before = path.read_bytes()
    report = lint_plan(path, settings=["distill.compression=6", "distill#2.epochs=9"])
    assert [f.where for f in report.findings if f.rule == "distill-capacity"] == ["stages[0].params.compression"]
    assert path.read_bytes() == before
    lint_plan(path, settings=["distill#2.epochs=9"], fix=True, out=tmp_path / "next.yaml")
    assert path.read_bytes() == before
    assert (report.written, report.original) == ("", "")
    assert yaml.safe_load((tmp_path / "next.yaml").read_text())["stages"][1]["params"]["epochs"] == 9


NOTHING = ("distill", "distill=3", "svd.ratio=0.5", "distill#2.epochs=3", "distill.epochs=[")


@pytest.mark.parametrize("setting", [*NOTHING, f"distill.epochs={'[' * 200_000}", "distill.epochs=\udc80"])
def test_a_setting_that_means_nothing_is_refused(setting, tmp_path):
    with pytest.raises(InputError, match="set: "):
        lint_plan(written(tmp_path, plan("distill")), settings=[setting])


def test_patches_count_stages_as_they_were():
    raw = {"stages": ["a", "b", "c", "d"]}
    patches = [
        Patch(action="drop", at=("stages", 1), value="b"),
        Patch(action="insert", at=("stages", 2), value="after c"),
        Patch(action="order", value=[3, 2, 1, 0]),
    ]
    assert patched(raw, patches)["stages"] == ["d", "c", "after c", "a"]
    assert raw == {"stages": ["a", "b", "c", "d"]}

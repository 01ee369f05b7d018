"""Plans are read leniently: every mistake of a file is found, whatever the first one is, and no code is run."""

import pytest
from linted import plan, written

from advisor.lint import lint_plan
from advisor.lint.case import legal_order
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError


def test_all_findings_are_collected_whatever_the_first_one_is(lint):
    raw = plan(
        ("int8_static", {"calibraton": "minmax"}),
        ("channels", {"ratio": 1.5}),
        "magnitud",
        ("magnitude", {"ratio": 0.5}),
        goal="sizes",
        workload={"threads": 4096},
        colour="red",
    )
    found = {(f.id, f.where) for f in lint(raw)}
    assert {
        ("unreadable", "colour"),
        ("unreadable", "stages[0].params.calibraton"),
        ("unreadable", "stages[1].params.ratio"),
        ("unreadable", "stages[2].technique"),
        ("names", "goal"),
        ("threads", "workload.threads"),
        ("order", "stages[1]"),
        ("order", "stages[3]"),
        ("refused", "stages[3]"),
        ("required", "stages[1]"),
    } <= found


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"stages": None}, "stages", "is not a list"),
        ({"stages": ["fp16"]}, "stages[0]", "names no technique"),
        ({"stages": [{"technique": "fp16", "param": {}}]}, "stages[0].param", "unknown field"),
        ({"stages": [{"technique": "fp16", "params": [1]}]}, "stages[0].params", "is not a mapping"),
        ({"stages": [{"technique": "svd", "params": {"ratio": "half"}}]}, "stages[0].params.ratio", "valid number"),
        ({"budget": {}}, "budget.max_drop", "is missing"),
        ({"budget": 3}, "budget", "should be a valid"),
        ({"workload": {"threads": 0}}, "workload.threads", "greater than or equal to 1"),
        ({"model": None}, "model", "valid string"),
        ({"target": "mobil"}, "target", "unknown target"),
        ({"knowledge": "nowhere"}, "knowledge", "no such folder"),
        ({"schema": "advisor.plan/9"}, "schema", "advisor.plan/1"),
        ({"task": "segmentation"}, "task", "is not supported yet"),
        ({"data": {"eval": "./nowhere.npz"}}, "data.eval", "no such file"),
        ({"data": {"calibration": "./c.npz"}}, "data", "calibration alone cannot judge"),
        ({"data": {"train": "./a.npz", "eval": "./a.npz"}}, "data", "one file serves two parts"),
        ({"workload": {"image_size": [3, 64, 64]}}, "workload.image_size", "reads 1 channels"),
        ({1: 2}, "[1]", "keys should be strings"),
    ],
)  # fmt: skip
def test_a_field_that_says_nothing_is_a_finding(changes, where, words, lint):
    found = [f for f in lint(plan("int8_static") | changes) if f.where == where]
    assert any(words in f.observed for f in found), found
    assert all(f.level == "error" for f in found)


@pytest.mark.parametrize(
    "raw", ["", "[1, 2]", "a: [", "!!python/object/apply:os.system ['true']", "seed: 2026-99-99", "- x: 1"]
)
def test_what_is_not_a_plan_is_refused(raw, tmp_path):
    with pytest.raises(InputError):
        lint_plan(written(tmp_path, raw))


def test_the_users_code_is_not_run_unasked(lint, tmp_path, monkeypatch):
    (tmp_path / "spying.py").write_text("open('imported', 'w').close()\ndef make(): ...\n")
    monkeypatch.chdir(tmp_path)
    found = {f.id: f for f in lint(plan("int8_static", model="spying:make", data={"eval": "zoo:digits-cnn"}))}
    assert found["model"].level == "note"
    assert "--allow-code" in found["model"].fix
    assert not (tmp_path / "imported").exists()


def test_a_recovery_goes_where_there_is_something_to_recover():
    def built(*names):
        return {number: CATALOG[name]() for number, name in enumerate(names)}

    assert legal_order(built("finetune", "int8_static", "channels")) == [2, 0, 1]
    assert legal_order(built("channels", "finetune", "magnitude", "finetune")) == [0, 1, 2, 3]
    assert legal_order(built("int8_static", "finetune")) == [0]
    assert legal_order(built("fp16", "int8_static")) == [0]

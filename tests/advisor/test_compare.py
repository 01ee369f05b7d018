import json
import re
from copy import deepcopy

import pytest
from click.testing import CliRunner

import cli
from advisor.compare import compare_runs
from advisor.report.measured import measured, quality_change
from knowledge.values import InputError


def folder(path, run):
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(run))
    return path


@pytest.fixture
def other(run_json):
    run = deepcopy(run_json)
    run["plan"]["stages"] = run["plan"]["stages"][2:]
    run["verification"]["compressed"]["size_bytes"] = 187_000
    run["verification"]["compression"] = 3.81
    run["verification"]["verdict"] = {"within_budget": False, "misses": [{"limit": "size", "text": "too large"}]}
    return run


def test_runs_stand_side_by_side(tmp_path, run_json, other):
    found = compare_runs([folder(tmp_path / "a", run_json), folder(tmp_path / "b", other)])
    first, second = found.runs
    assert (first.chain, second.chain) == ("channels → finetune → int8_static", "int8_static")
    assert (first.size_bytes, second.size_bytes) == (52_100, 187_000)
    assert first.quality_drop == pytest.approx(0.56)
    assert (first.within_budget, second.within_budget) == (True, False)
    assert found.cautions == ()


def test_the_change_of_a_score_has_the_score_s_own_sign(tmp_path, run_json, other):
    """A perplexity that falls is a gain; it is shown as a fall, and as no loss."""
    unit = {"metric": "perplexity", "higher_is_better": False, "unit": "%"}
    verification = run_json["verification"]
    verification["baseline"]["quality"] = {**unit, "value": 212.9}
    verification["compressed"]["quality"] = {**unit, "value": 206.2}
    runs = [folder(tmp_path / "a", run_json), folder(tmp_path / "b", other)]
    found = compare_runs(runs)
    assert [run.quality_change for run in found.runs] == ["−3.15 %", "−0.56 pp"]
    assert found.runs[0].quality_drop == pytest.approx(-3.147, abs=1e-3)
    shown = CliRunner().invoke(cli.main, ["compare", *map(str, runs)]).stdout
    assert re.search(r"206\.2 +−3\.15 %", shown)
    (row,) = (r for r in measured(verification) if r.figure == "perplexity")
    assert (row.before, row.after, row.change) == ("212.9", "206.2", "−3.15 %")
    assert quality_change(verification["compressed"]["quality"], verification["baseline"]["quality"]) == "+3.25 %"


def test_a_study_stands_for_its_best_run(tmp_path, run_json, other):
    folder(tmp_path / "study" / "best", run_json)
    found = compare_runs([tmp_path / "study", folder(tmp_path / "b", other)])
    assert found.runs[0].size_bytes == 52_100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: run["plan"].update(model="zoo:minilm"), "different models"),
        (lambda run: run["plan"]["workload"].update(batch=32), "different workloads"),
        (lambda run: run["verification"]["compressed"]["quality"].update(metric="f1"), "different metrics"),
        (lambda run: run["plan"].update(seed=1), "different seeds"),
        (lambda run: run["plan"].update(data={"eval": "mine.npz"}), "different data"),
        (lambda run: run["verification"]["environment"].update(cpu="another"), "different environments"),
    ],
)
def test_figures_that_may_not_be_compared_are_said_so(tmp_path, run_json, other, change, words):
    change(other)
    found = compare_runs([folder(tmp_path / "a", run_json), folder(tmp_path / "b", other)])
    assert [text.split(":")[0] for text in found.cautions] == [words]


def test_the_command_prints_a_table_and_json(tmp_path, run_json, other):
    runs = [str(folder(tmp_path / "a", run_json)), str(folder(tmp_path / "b", other))]
    shown = CliRunner().invoke(cli.main, ["compare", *runs])
    assert shown.exit_code == 0
    assert "2.38×" in shown.stdout
    assert "187 KB" in shown.stdout
    found = json.loads(CliRunner().invoke(cli.main, ["compare", *runs, "--json"]).stdout)
    assert found["schema"] == "advisor.compare/1"
    assert [r["size_bytes"] for r in found["runs"]] == [52_100, 187_000]


def test_one_run_or_an_unverified_one_is_refused(tmp_path, run_json):
    one = folder(tmp_path / "a", run_json)
    with pytest.raises(InputError, match="two or more"):
        compare_runs([one])
    run_json["verification"] = None
    with pytest.raises(InputError, match="never verified"):
        compare_runs([one, folder(tmp_path / "b", run_json)])

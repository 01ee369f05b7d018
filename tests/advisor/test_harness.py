"""What `verify` says of windows and lm-eval tasks: the rows of its table, and what is refused before anything runs."""

import importlib.util
from pathlib import Path

import pytest
from typed import advisor, refused

from advisor.harness import Harness
from advisor.report.measured import measured
from knowledge.values import InputError

SCORE = {
    "task": "next-line",
    "metric": "acc",
    "filter": "none",
    "higher_is_better": True,
    "shots": 0,
    "documents": 1205,
    "baseline": 0.412345,
    "compressed": 0.40123,
    "baseline_stderr": 0.0142,
    "stderr": 0.0141,
    "difference": -0.011115,
    "difference_stderr": 0.0049,
}


def rows(run, **more):
    return {row.figure: row for row in measured({**run["verification"], **more})}


def test_the_protocol_stands_beside_the_perplexity(run_json):
    metric = run_json["verification"]["compressed"]["quality"]["metric"]
    protocol = {"window": 256, "stride": 64, "tokens": 12265, "windows": 182}
    plain, said = rows(run_json)[metric].change, rows(run_json, protocol=protocol)[metric].change
    assert said == f"{plain}; over 12,265 tokens, windows of 256, stride 64"


def test_scores_of_tasks_are_rows_with_what_may_be_chance(run_json):
    found = rows(run_json, lm_eval=[SCORE])["next-line, acc"]
    assert (found.before, found.after) == ("0.4123 ± 0.014", "0.4012 ± 0.014")
    assert found.change == "-0.01111 ± 0.0049; 1,205 documents, 0 shots"
    odd = SCORE | {"filter": "strict", "baseline": None, "baseline_stderr": None, "difference": None}
    found = rows(run_json, lm_eval=[odd | {"difference_stderr": None}])["next-line, acc (strict)"]
    assert (found.before, found.change) == ("—", "1,205 documents, 0 shots")


def test_tasks_are_named_with_commas(tmp_path):
    assert Harness.asked(None, None, None) is None
    assert Harness.asked("a, b,a", tmp_path, 3) == Harness(("a", "b"), tmp_path, 3)
    for arguments, text in (
        ((None, tmp_path, None), "lm-eval-include: .*: belongs to --lm-eval"),
        ((None, None, 3), "limit: 3: belongs to --lm-eval; name the tasks with --lm-eval"),
        ((" ,", None, None), "lm-eval:  ?,: names no task"),
        (("a", Path("nowhere"), None), "lm-eval-include: nowhere: no such folder"),
    ):
        with pytest.raises(InputError, match=text):
            Harness.asked(*arguments)


def test_options_without_tasks_are_refused(folder):
    refused(advisor("verify", "run", "--limit", "3"), 2, "limit: 3: belongs to --lm-eval")
    refused(advisor("verify", "run", "--stride", "0"), 2, "--stride", "0")


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="the extra is installed")
def test_without_the_extra_its_name_is_told():
    with pytest.raises(InputError) as error:
        Harness(("a", "b")).check_installed()
    text = "lm-eval: a,b: the extra is not installed; pip install 'compression-advisor[lm-eval]'"
    assert str(error.value) == text

"""`advisor diagnose`: terminal and JSON say the same, and what is no run or study is refused."""

import json
import shlex

import pytest
from diagnosed import told
from typed import advisor

from advisor.diagnose import OF_RUNS, OF_STUDIES, commands, diagnose
from knowledge.values import InputError


def test_every_check_of_runs_and_studies_is_a_function_of_its_own():
    assert len({check.__name__ for check in (*OF_RUNS, *OF_STUDIES)}) == len(OF_RUNS) + len(OF_STUDIES)


def test_the_terminal_and_json_say_the_same(zeros, half):
    shown, found = advisor("diagnose", zeros), json.loads(advisor("diagnose", zeros, "--json").stdout)
    assert shown.exit_code == 0
    assert found["schema"] == "advisor.diagnosis/1"
    for diagnosis in found["diagnoses"]:
        for line in diagnosis["commands"]:
            assert line in shown.stdout  # in one line, to be copied
    assert advisor("diagnose", half).exit_code == 1


def test_a_suggested_recommendation_answers(zeros):
    line = told(zeros)[1]["zeros-stored-densely"].commands[0]
    assert advisor(*shlex.split(line)[1:]).exit_code == 0


UNVERIFIED = (
    '{"schema": "advisor.run/1", "stages": [], "baseline": {}, "plan": {}, "warnings": [], "verification": null}'
)
NO_VERDICT = UNVERIFIED.replace("null", '{"baseline": {}}')


@pytest.mark.parametrize(
    "broken", ["{", "[]", '{"schema": "other"}', '{"schema": "advisor.run/1"}', UNVERIFIED, NO_VERDICT]
)
def test_a_folder_that_cannot_be_read_is_refused(broken, cut, copied):
    folder = copied(cut)
    (folder / "run.json").write_text(broken)
    shown = advisor("diagnose", folder)
    assert shown.exit_code == 2
    assert shown.stderr.strip().count("\n") == 0
    assert "run" in shown.stderr


def test_a_folder_without_a_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="run: "):
            diagnose(folder)
    (tmp_path / "study.db").write_text("no database")
    with pytest.raises(InputError, match=r"study\.db"):
        diagnose(tmp_path)


def test_what_is_suggested_again_goes_into_a_folder_that_is_free(tmp_path):
    run = tmp_path / "run"
    assert commands.free(run) == tmp_path / "run-2"
    (tmp_path / "run-2-search").mkdir()
    (tmp_path / "run-3.yaml").write_text("")
    assert commands.free(run) == tmp_path / "run-4"

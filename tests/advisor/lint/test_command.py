"""`advisor lint`: exit codes, what the terminal shows, and bad input in one line."""

import json

import pytest
from linted import MESSY, plan, written
from typed import advisor


@pytest.mark.parametrize(("raw", "code"), [(plan("int8_static"), 0), (plan("fp16"), 0), (plan("magnitude"), 1)])
def test_the_exit_code_says_whether_something_is_left(raw, code, tmp_path):
    path = written(tmp_path, raw)
    assert advisor("lint", path).exit_code == code
    found = json.loads(advisor("lint", path, "--json").stdout)
    assert found["schema"] == "advisor.lint/1"
    assert bool([f for f in found["findings"] if f["level"] != "note"]) == bool(code)


def test_the_terminal_shows_what_why_and_how(tmp_path):
    path = written(tmp_path, MESSY)
    shown = advisor("lint", path)
    assert "error" in shown.stdout
    assert "(--fix does it)" in shown.stdout
    assert max(map(len, shown.stdout.splitlines()[1:])) <= 100  # the first names the file
    mended = advisor("lint", path, "--fix")
    assert "changed" in mended.stdout
    assert ".orig" in mended.stderr
    assert mended.exit_code == advisor("lint", path).exit_code


@pytest.mark.parametrize(
    "args",
    [
        ["nowhere.yaml"],
        ["plan.yaml", "--out", "x.yaml"],
        ["plan.yaml", "--fix", "--out", "."],
        ["plan.yaml", "--fix", "--out", "plan.yaml/x.yaml"],
        ["plan.yaml", "--set", "int8_static.smooth=2026-99-99"],
        ["x" * 300],
    ],
)
def test_bad_input_is_one_line(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, plan("int8_static"))
    shown = advisor("lint", *args)
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert shown.stderr.strip().count("\n") == 0
    assert not (tmp_path / "x.yaml").exists()

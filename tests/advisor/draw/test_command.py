"""`advisor graph`: the format, the file, JSON that agrees with the recommendation, and bad input in one line."""

import json
from pathlib import Path

import pytest
from typed import advisor

from advisor.draw import FORMATS, format_for


@pytest.mark.parametrize(
    ("named", "out", "form"),
    [
        (None, None, "mermaid"),
        (None, "a.mmd", "mermaid"),
        (None, "a.GV", "dot"),
        (None, "a.b/c.svg", "svg"),
        (None, "a.htm", "html"),
        ("dot", "a.txt", "dot"),
        ("svg", None, "svg"),
    ],
)
def test_the_format_is_the_one_named_or_that_of_the_ending(named, out, form):
    assert format_for(named, Path(out) if out else None) == form


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--format", "pgn"], "unknown format"),
        (["--format", "htlm"], "did you mean html"),
        (["--out", "graph.png"], "use .mmd"),
        (["--out", "graph"], "the ending names no format"),
        (["--out", "folder.svg"], "is a folder"),
        (["--out", "file/graph.svg"], "cannot be written"),
        (["--top", "0"], "is below 1"),
        (["--target", "mobil"], "did you mean mobile"),
        (["zoo:no-such-model"], "zoo:no-such-model"),
    ],
)
def test_bad_requests_for_a_drawing_get_one_line_and_leave_nothing(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "file").write_text("")
    arch = [] if args[0].startswith("zoo:") else ["--arch", "cnn"]
    shown = advisor("graph", *args, *arch)
    assert shown.exit_code == 2
    assert said in shown.stderr
    assert shown.stderr.strip().count("\n") == 0
    assert shown.stdout == ""
    assert {p.name for p in tmp_path.rglob("*")} == {"folder.svg", "file"}


def test_json_has_nodes_edges_path_and_refusals_of_the_recommendation():
    found = json.loads(advisor("graph", "--arch", "cnn", "--json").stdout)
    advice = json.loads(advisor("recommend", "--arch", "cnn", "--json").stdout)
    assert next(iter(found)) == "schema"
    assert {"nodes", "edges", "path", "refused", "chains", "rules"} <= set(found)
    techniques = {n["id"]: n["technique"] for n in found["nodes"]}
    first = advice["chains"][0]
    assert [techniques[n] for n in found["path"][1:-1]] == [s["technique"] for s in first["stages"]]
    assert found["refused"] == advice["refused"]
    assert [c["id"] for c in found["chains"]] == [c["id"] for c in advice["chains"]]


@pytest.mark.parametrize("form", FORMATS)
def test_files_hold_what_is_printed(form, tmp_path):
    ending = {"mermaid": "mmd"}.get(form, form)
    file = tmp_path / f"graph.{ending}"
    shown = advisor("graph", "--arch", "rnn", "--out", file)
    assert (shown.exit_code, shown.stdout) == (0, f"graph: {file}\n")
    assert file.read_text() == advisor("graph", "--arch", "rnn", "--format", form).stdout
    assert [p.name for p in tmp_path.iterdir()] == [file.name]

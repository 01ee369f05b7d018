import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import cli
from advisor.readiness import NOT_YET, runnable
from advisor.show.console import clean, paragraph, table
from knowledge.values import InputError, RunFailed

ROOT = Path(cli.__file__).parent
HEAVY = (
    "torch",
    "optuna",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "sklearn",
    "scipy",
    "jinja2",
    "sqlalchemy",
)


def advisor(*args):
    return CliRunner().invoke(cli.main, [str(a) for a in args])


def commands(group=cli.main, path=()):
    """Every command that is no group, with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("path", "command"), commands(), ids=lambda v: "-".join(v) if isinstance(v, tuple) else "")
def test_every_command_is_documented_with_an_example_that_parses(path, command):
    shown = advisor(*path, "--help")
    assert shown.exit_code == 0
    assert "Example:" in shown.stdout
    example = next(line.split() for line in shown.stdout.splitlines() if line.strip().startswith("advisor "))
    assert tuple(example[1 : 1 + len(path)]) == path
    parser = command.make_parser(click.Context(command))
    _, rest, _ = parser.parse_args(example[1 + len(path) :])
    assert not rest
    assert all(p.help for p in command.params if isinstance(p, click.Option))


@pytest.mark.parametrize(("path", "command"), commands(), ids=lambda v: "-".join(v) if isinstance(v, tuple) else "")
def test_every_command_that_prints_has_json(path, command):
    assert path == ("demo",) or "as_json" in [p.name for p in command.params]


def test_recommend_prints_chains_reasons_refusals_and_sources():
    shown = advisor("recommend", "--arch", "transformer", "--target", "mobile")
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    first = next(line for line in lines if line.startswith("1  "))
    assert first.index("distill") < first.index("int8")
    assert "estimates" in shown.stdout
    refused = shown.stdout[shown.stdout.index("\nRefused\n") :]
    assert "magnitude" in refused
    assert "instead:" in refused
    assert "[" in refused
    assert "assumed" in shown.stdout


@pytest.mark.parametrize(("arch", "first"), [("cnn", ["channels", "int8_static"]), ("rnn", ["int8_dynamic"])])
def test_the_first_chain_by_architecture(arch, first):
    advice = json.loads(advisor("recommend", "--arch", arch, "--json").stdout)
    assert [s["technique"] for s in advice["chains"][0]["stages"] if s["family"] != "recover"] == first


def test_recommend_json_has_the_contract_s_names():
    advice = json.loads(advisor("recommend", "--arch", "cnn", "--target", "mobile", "--json", "--top", "2").stdout)
    assert next(iter(advice)) == "schema"
    assert {"schema", "request", "facts", "profile", "chains", "refused"} <= set(advice)
    assert len(advice["chains"]) == 2
    chain = advice["chains"][0]
    assert {"rank", "id", "stages", "estimate", "fits", "reasons", "warnings"} <= set(chain)
    assert {"technique", "family", "params"} <= set(chain["stages"][0])
    for figure in ("size_bytes", "compression", "speedup", "latency_ms", "quality_drop"):
        assert set(chain["estimate"][figure]) == {"low", "mid", "high", "unit", "basis"}
    assert {"technique", "rule", "text", "source", "remedy"} <= set(advice["refused"][0])


def test_recommend_imports_no_framework():
    script = f"""
import sys
sys.argv = ["advisor", "recommend", "--arch", "transformer", "--target", "mobile"]
import cli
try:
    cli.main()
except SystemExit as ended:
    assert ended.code == 0, ended.code
found = [name for name in {HEAVY!r} if name in sys.modules]
assert not found, found
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_recommend_starts_about_as_fast_as_its_libraries():
    libraries = "import click, pydantic, networkx, yaml, rich, numpy; pydantic.create_model('Any')"  # loaded when used
    base = [sys.executable, "-c", libraries]
    ours = [sys.executable, "cli.py", "recommend", "--arch", "transformer", "--target", "mobile"]
    seconds = {"base": [], "ours": []}
    for _ in range(10):
        for name, command in (("base", base), ("ours", ours)):
            before = cpu_seconds()
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(cpu_seconds() - before)
    assert statistics.median(seconds["ours"]) <= 2 * statistics.median(seconds["base"]), seconds


def cpu_seconds():
    """Time of finished children on the processor: their wall time, less what other work on the machine adds to it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_inspect_shows_totals_and_json_holds_every_layer():
    shown = advisor("inspect", "zoo:digits-cnn")
    found = json.loads(advisor("inspect", "zoo:digits-cnn", "--json").stdout)
    assert found["schema"] == "advisor.inspect/1"
    assert f"{found['parameters']:,}" in shown.stdout
    assert sum(g["parameters"] for g in found["groups"]) == found["parameters"]
    assert sum(g["layers"] for g in found["groups"]) == len(found["layers"])
    assert found["layers"][0]["path"] in advisor("inspect", "zoo:digits-cnn", "--layers").stdout


def test_targets_and_techniques_are_listed():
    assert "server-cpu" in advisor("targets", "list").stdout
    known = json.loads(advisor("targets", "list", "--json").stdout)["targets"]
    assert {"mobile", "edge", "server-cpu", "server-gpu", "a100", "browser"} <= {t["id"] for t in known}
    rows = json.loads(advisor("knowledge", "techniques", "--json").stdout)["techniques"]
    assert {row["why_not"] for row in rows if not row["runs"]} == {NOT_YET}
    assert {row["id"] for row in rows if row["runs"]} == runnable()
    listed = advisor("knowledge", "techniques").stdout
    assert all(row["id"] in listed for row in rows)
    assert "0.1 to 0.7" in advisor("knowledge", "techniques", "channels").stdout


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("max-drop", "-1", "is below zero", "use 2pp"), 2, "max-drop: -1: is below zero; use 2pp"),
        (RunFailed("stage 2: the disk is full"), 3, "stage 2: the disk is full"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (ValueError("two\nlines"), 3, "ValueError: two lines (this is a fault in advisor"),
        (MemoryError(), 3, "MemoryError"),
    ],
)
def test_every_failure_is_one_line_and_a_code(monkeypatch, error, code, words):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("advisor.advise.advise", fails)
    shown = advisor("recommend", "--arch", "cnn")
    assert shown.exit_code == code
    assert words in shown.stderr
    assert shown.stderr.strip().count("\n") == 0
    assert shown.stderr.strip().startswith("advisor: ")
    assert shown.stdout == ""
    assert "Traceback" not in shown.output


def test_the_traceback_is_there_for_those_who_ask(monkeypatch):
    monkeypatch.setenv("ADVISOR_DEBUG", "1")
    monkeypatch.setattr("advisor.advise.advise", lambda request: 1 / 0)
    assert "Traceback" in advisor("recommend", "--arch", "cnn").stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["reccommend"], "Did you mean 'recommend'?"),
        (["recommend", "--arhc", "cnn"], "--arch"),
        (["run", "plan.yaml"], "'--out'"),
        (["search", "zoo:digits-cnn", "--out", "x", "--trials", "0"], "'--trials'"),
        (["compare"], "RUNS"),
        (["recommend"], "neither a model nor an architecture"),
        (["recommend", "--arch", "cnn", "--params", "0.3"], "is below 1"),
        (["recommend", "--arch", "cnn", "--params", "1e30"], "is above"),
        (["recommend", "x" * 300], "the name is too long"),
        (["compare", "x" * 300, "y"], "the name is too long"),
    ],
)
def test_a_mistyped_command_gets_one_line(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = advisor(*args)
    assert shown.exit_code == 2
    assert words in shown.stderr
    assert shown.stderr.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} cli.py targets list --json | head -c 20 >/dev/null; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.stderr == ""
    assert ended.returncode == 0


def test_names_cannot_steer_the_terminal(capsys):
    assert clean("a\x1b[31mb\x07") == "a�[31mb�"
    table(("name",), [("[bold]x[/bold]\x1b[2J:smile:",)])
    paragraph("\x1b]0;title\x07 " + "word " * 40, first="- ")
    printed = capsys.readouterr().out
    assert "[bold]x[/bold]�[2J:smile:" in printed
    assert "\x1b]" not in printed
    assert all(len(line) <= 100 for line in printed.splitlines())


def test_an_address_is_never_broken(capsys):
    address = "https://example.org/" + "x" * 120
    paragraph(f"see {address}", first="  1. ")
    assert address in capsys.readouterr().out


def test_wide_terminals_get_wider_tables(monkeypatch):
    monkeypatch.setenv("COLUMNS", "118")
    lines = advisor("recommend", "--arch", "transformer", "--target", "mobile").stdout.splitlines()
    assert 100 < max(map(len, lines)) <= 118
    assert os.environ["COLUMNS"] == "118"

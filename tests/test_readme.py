"""Every command and file that the README shows, in its order, in one folder.

    ```console head=20      one `$ command`, then its output; head, tail, grep and after say which part is shown
    ```python own.py        a file that later commands use; without a name it is run

UPDATE_README=1 writes the real output into the README. Otherwise outputs that no measurement enters must be as shown.
"""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from advisor.techniques import markdown_table

ROOT = Path(cli.__file__).parent
README = ROOT / "README.md"
UPDATE = bool(os.environ.get("UPDATE_README"))
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.M | re.S)
TABLE = re.compile(r"(?<=--markdown` -->\n).*?(?=<!-- /techniques -->)", re.S)
EXACT = ("recommend", "inspect", "targets")  # nothing of the machine enters these

pytestmark = pytest.mark.timeout(1500)  # of the fixture, which runs everything; alone on two cores it takes a fraction


def blocks():
    return [(kind, options.strip(), body) for kind, options, body in BLOCK.findall(README.read_text())]


@pytest.fixture(scope="module")
def transcript(tmp_path_factory):
    """[(words, shown in the README, printed)] of every command, run one after another."""
    folder = tmp_path_factory.mktemp("readme")
    ran = []
    for kind, options, body in blocks():
        if kind == "console":
            command, _, shown = body.removeprefix("$ ").partition("\n")
            ended = execute(shlex.split(command), folder)
            ran.append((shlex.split(command), shown, part(ended, options)))
        elif options:
            (folder / options).parent.mkdir(parents=True, exist_ok=True)
            (folder / options).write_text(body)
        elif kind == "python":
            execute(["python", "-c", body], folder)
    if UPDATE:
        update(ran)
    return folder, ran


def execute(words, folder):
    """Standard output of a command that must end well."""
    python = {"python": [sys.executable], "advisor": [sys.executable, str(ROOT / "cli.py")]}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    if words[1] == "recommend":  # which plans the commands before it measured depends on times, and moves estimates
        environment["ADVISOR_CONFIG"] = str(folder / "as-installed")
    ended = subprocess.run(
        python[words[0]] + words[1:], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{shlex.join(words)}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def part(text, options):
    """The part of an output that a block's options choose."""
    lines = text.splitlines(keepends=True)
    name, _, value = options.partition("=")
    if name == "head" and len(lines) > int(value):
        return "".join(lines[: int(value)]) + "…\n"
    if name == "tail" and len(lines) > int(value):
        return "…\n" + "".join(lines[-int(value) :])
    if name == "after":  # one section
        start = next(n for n, line in enumerate(lines) if line.startswith(value))
        return "".join(itertools.takewhile(str.strip, lines[start:]))
    return "".join(line for line in lines if value in line) if name == "grep" else text


def update(ran):
    printed = iter(ran)

    def real(match):
        if match[1] != "console":
            return match[0]
        output = next(printed)[2]
        return f"```console{match[2]}\n$ {match[3].removeprefix('$ ').partition(chr(10))[0]}\n{output}```"

    text = TABLE.sub(lambda _: markdown_table() + "\n", README.read_text())
    README.write_text(BLOCK.sub(real, text))


def test_every_command_of_the_readme_runs_and_shows_what_it_prints(transcript):
    _, ran = transcript
    assert {"recommend", "demo", "run", "compare", "search"} <= {words[1] for words, _, _ in ran}
    for words, shown, printed in ran:
        if words[1] in EXACT and not UPDATE:
            assert shown == printed, shlex.join(words)
        assert bool(shown.strip()) == bool(printed.strip()) or UPDATE, shlex.join(words)


def test_the_demo_keeps_the_promise_of_the_readme(transcript):
    """At least 4 times smaller and 1.5 times faster within 2 points, from a dozen trials, with a report."""
    folder, _ = transcript
    verification = json.loads((folder / "demo" / "best" / "verification.json").read_text())
    before, after = verification["baseline"], verification["compressed"]
    assert verification["compression"] >= 4
    assert verification["speedup"]["value"] >= 1.5
    assert before["quality"]["value"] - after["quality"]["value"] <= 0.02
    assert len(json.loads((folder / "demo" / "pareto.json").read_text())["trials"]) >= 12
    assert "Within the budget" in (folder / "demo" / "report.html").read_text()


def test_an_artifact_can_be_verified_and_reported_again(transcript):
    folder, _ = transcript
    found = json.loads(execute(["advisor", "verify", "again/artifact/model.onnx", "--json"], folder))
    assert found["schema"] == "advisor.verification/1"
    run = json.loads((folder / "again" / "run.json").read_text())
    assert run["verification"] == json.loads((folder / "again" / "verification.json").read_text()) == found
    page = folder / "demo" / "report.html"
    page.unlink()
    written = execute(["advisor", "report", "demo"], folder).split()
    assert "demo/report.html" in written
    assert all((folder / name).exists() for name in written)


def test_commands_named_in_the_text_exist():
    text = BLOCK.sub("", README.read_text())
    for command in set(re.findall(r"`advisor ([a-z]+)", text)):
        assert CliRunner().invoke(cli.main, [command, "--help"]).exit_code == 0, command
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make (\w+)", README.read_text())) <= targets


def test_the_table_of_techniques_is_the_catalogue_s():
    shown = CliRunner().invoke(cli.main, ["knowledge", "techniques", "--markdown"])
    assert TABLE.search(README.read_text())[0] == shown.stdout


def test_the_readme_has_no_dead_links():
    addresses = re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", README.read_text()))
    assert all(a.startswith("https://") or (ROOT / a).exists() for a in addresses)

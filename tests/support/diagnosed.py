"""What diagnoses say, with every command of theirs parsed; runs to be edited."""

import json
import shlex

import click

import cli
from advisor.diagnose import diagnose
from advisor.request import Request
from advisor.show.options import REQUEST


def parses(line):
    """Whether click and the request take a command as it stands; returns the command's name."""
    program, *words = shlex.split(line)
    assert program == "advisor"
    found: click.Command = cli.main
    while isinstance(found, click.Group):
        found, words = found.commands[words[0]], words[1:]
    given = found.make_context(found.name, words).params
    if "target" in given:
        options = {
            name: given[name] for name in (n.replace("-", "_") for n, _, _ in REQUEST) if not name.endswith("data")
        }
        Request.parse(model=given["model"], **options)
    return found.name


def told(folder):
    """The diagnoses of a folder by id, every command of them parsed."""
    report = diagnose(folder)
    for found in report.diagnoses:
        assert found.commands, found.id
        assert all((found.seen, found.why, found.source, found.advice)), found.id
        for line in found.commands:
            parses(line)
    return report, {d.id: d for d in report.diagnoses}


def edited(folder, change):
    """The folder with its run.json changed."""
    run = json.loads((folder / "run.json").read_text())
    change(run)
    (folder / "run.json").write_text(json.dumps(run))
    return folder

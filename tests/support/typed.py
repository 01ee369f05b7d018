"""Commands as a user types them, and what bad input must look like."""

import json
from pathlib import Path

import yaml
from click.testing import CliRunner

import cli

ROOT = Path(cli.__file__).parent
PLAN = {
    "schema": "advisor.plan/1",
    "model": "zoo:digits-cnn",
    "task": "image-classification",
    "target": "server-cpu",
    "workload": {"batch": 1, "threads": 1},
    "budget": {"max_drop": {"amount": 3, "unit": "pp"}},
    "stages": [{"technique": "fp16", "params": {}}],
}
GOOD = [{"text": f"{w} day", "label": n % 2} for n, w in enumerate(["good", "bad"] * 20)]


def advisor(*args):
    return CliRunner().invoke(cli.main, [str(a) for a in args])


def refused(shown, code, *words):
    """One line on stderr with every word, the exit code, nothing on stdout."""
    assert shown.exit_code == code, shown.output
    last = shown.stderr.strip().splitlines()[-1]
    assert last.startswith("advisor: ")
    assert "Traceback" not in shown.output
    for word in words:
        assert word in last, last
    assert shown.stdout == ""
    return last


def nothing_written(folder, *known):
    """No file beside those that the test made."""
    left = {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
    assert left == set(known)


def plan_file(**changes):
    Path("plan.yaml").write_text(yaml.safe_dump(PLAN | changes))
    return "plan.yaml"


def texts(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def edited(folder, **changes):
    """Fields of a folder's config.json, changed."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder

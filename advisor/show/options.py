"""Options that mean the same wherever they apply, as decorators for click commands."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from advisor.request import Request
from knowledge.values import InputError

Command = Callable[..., Any]
FOLDER = click.Path(path_type=Path)
DATA = ("train", "calibration", "eval")
OWN_KNOWLEDGE = "Your rules/, claims/, targets/, models/ and presets/, laid over ours."

# name, value, help; the request checks the values, so that the command line and the Python API say the same
REQUEST = (
    ("arch", "NAME", "transformer, cnn, rnn or moe. [read from MODEL]"),
    ("task", "NAME", "Such as causal-lm; fidelity needs no labels. [read from MODEL]"),
    ("target", "NAME|FILE", "A target (see `targets list`) or its YAML file. [server-cpu]"),
    ("max-drop", "2pp|2%", "Quality to spend: points, or relative percent. [3]"),
    ("max-size", "50MB", "Largest file."),
    ("max-latency", "20ms", "Longest median latency."),
    ("max-memory", "200MB", "Most memory at run time."),
    ("min-speedup", "2", "Least speed-up over the uncompressed model."),
    ("goal", "NAME", "size, latency, throughput, memory, quality or overall. [overall]"),
    ("training", "LEVEL", "How much training is affordable: none, light or full. [full]"),
    ("data-level", "LEVEL", "none, calibration, unlabeled or labeled. [labeled]"),
    ("teacher", "KIND", "A teacher beside MODEL: same-vocabulary, other-vocabulary, several, text. [none]"),
    ("preset", "NAME", "Start from a preset: conservative, balanced or aggressive."),
    ("train-data", "PATH", "Your training data: .jsonl, .csv, .npz or an image folder."),
    ("calibration-data", "PATH", "Your calibration data."),
    ("eval-data", "PATH", "Your evaluation data."),
    ("metric", "NAME", "Such as f1, or your own module:function. [the task's]"),
    ("batch", "N", "Batch size of the workload. [1]"),
    ("seq-len", "N", "Sequence length of the workload. [128]"),
    ("image-size", "3x224x224", "Image size of the workload. [the model's]"),
    ("threads", "N", "Threads of the workload. [the target's]"),
    ("knowledge", "DIR", OWN_KNOWLEDGE),
    ("seed", "N", "Seed of everything random. [0]"),
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
allow_code = click.option("--allow-code", is_flag=True, help="Run the Python code that the plan names.")
knowledge = click.option("--knowledge", metavar="DIR", help=OWN_KNOWLEDGE)
out = click.option(
    "--out", "-o", metavar="DIR", type=click.Path(path_type=Path), required=True, help="Folder to write."
)


def trials(default: int) -> Callable[[Command], Command]:
    """How many chains and parameter settings a search may try."""
    return click.option(
        "--trials",
        type=click.IntRange(1),
        metavar="N",
        default=default,
        help=f"Chains and parameters to try. [{default}]",
    )


def arch_and_task(command: Command) -> Command:
    """What a model is, where it does not say itself; the command receives `arch` and `task`."""
    for name, value, text in reversed(REQUEST[:2]):
        command = click.option(f"--{name}", metavar=value, help=text)(command)
    return command


def request(command: Command) -> Command:
    """Every option of a request; with the command's own `model`, `top` and `params`, it receives `request: Request`."""

    @functools.wraps(command)
    def called(model: str | None, **given: Any) -> Any:
        asked = {name: given.pop(name) for name in (n.replace("-", "_") for n, _, _ in REQUEST)}
        asked["data"] = {kind: path for kind in DATA if (path := asked.pop(f"{kind}_data")) is not None}
        for kind, path in asked["data"].items():
            _check_exists(f"{kind}-data", path)
        more = {name: given.pop(name) for name in ("top", "params") if name in given}
        return command(request=Request.parse(model=model, **asked, **more), **given)

    decorated: Command = called
    for name, value, text in reversed(REQUEST):
        decorated = click.option(f"--{name}", metavar=value, help=text)(decorated)
    return decorated


def _check_exists(field: str, path: str) -> None:
    """What looks like a path is checked before anything is loaded; other words may name a `datasets` data set."""
    is_path = path.startswith((".", "/", "~")) or Path(path).suffix != ""
    if is_path and not Path(path).expanduser().exists():
        raise InputError(field, path, "no such file or folder", "give .jsonl, .csv, .npz or an image folder")

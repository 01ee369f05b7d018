"""Commands to try next, spelled out with the options of the run or the search that is diagnosed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.lint.case import request_of
from advisor.request import Request
from knowledge.sources import is_factory, is_function
from knowledge.values import Plan

SEARCHED = "-search"  # what the folder of a search beside a run ends in
Settings = Mapping[str, Any]  # technique.parameter -> value
SAME_NAME = ("arch", "task", "target", "min_speedup", "training", "data_level", "teacher", "preset", "metric")


def search(asked: Plan | Request, out: Path, **changes: Any) -> str:
    """Searches for the same model with the same options, some of them changed or added."""
    request = asked if isinstance(asked, Request) else request_of(asked)
    return command("search", request.model, {**options_of(request), **changes, "out": out})


def search_beside(plan: Plan, folder: Path, **changes: Any) -> str:
    """Searches as the plan of a run folder asks, with options changed, into a folder beside it that is free."""
    again = free(folder)
    return search(plan, again.with_name(f"{again.name}{SEARCHED}"), **changes)


def with_less_memory(plan: Plan) -> tuple[str, str]:
    """What to do where memory is short, in words and as a command."""
    batch = plan.workload.batch
    if batch > 1:
        return "halve the batch of the workload", recommend(plan, batch=batch // 2)
    return "take a chain that trains nothing", recommend(plan, training="none")


def recommend(plan: Plan, **changes: Any) -> str:
    """What would be advised for the plan's model, with options changed or added."""
    return command("recommend", plan.model, {**options_of(request_of(plan)), **changes})


def run(plan: Plan, plan_file: Path, out: Path) -> str:
    """Runs a plan file."""
    return shlex.join(["advisor", "run", str(plan_file), "--out", str(out), *_code(plan)])


def verify(plan: Plan, folder: Path) -> str:
    """Measures a finished run again."""
    return shlex.join(["advisor", "verify", str(folder), *_code(plan)])


def lint(folder: Path) -> str:
    """Says what is wrong with a run's plan."""
    return shlex.join(["advisor", "lint", str(folder / "plan.yaml")])


def report(folder: Path) -> str:
    """Writes a run's report again."""
    return shlex.join(["advisor", "report", str(folder)])


def edited_run(plan: Plan, folder: Path, settings: Settings | None = None) -> tuple[str, str]:
    """The plan of a run folder, mended and with parameters changed, written beside the folder and run."""
    again = free(folder)
    file = again.with_name(f"{again.name}.yaml")
    words = ["advisor", "lint", str(folder / "plan.yaml")]
    for name, value in (settings or {}).items():
        words += ["--set", f"{name}={text_of(value)}"]
    return shlex.join([*words, "--fix", "--out", str(file), *_code(plan)]), run(plan, file, again)


def free(folder: Path) -> Path:
    """The folder's name with the first number that is free; of a study's winner, the study's, to write beside it."""
    folder = folder.parent if (folder.parent / "pareto.json").exists() else folder
    number = 2
    while any((folder.parent / f"{folder.name}-{number}{end}").exists() for end in ("", ".yaml", SEARCHED)):
        number += 1
    return folder.with_name(f"{folder.name}-{number}")


def options_of(request: Request) -> dict[str, Any]:
    """The command line's options of a request, without those that say what is assumed anyway."""
    usual = {name: field.default for name, field in Request.model_fields.items()}
    options = {name: getattr(request, name) for name in SAME_NAME if getattr(request, name) != usual[name]}
    if request.model.startswith("zoo:"):  # it says itself what it is
        options = {name: value for name, value in options.items() if name not in ("arch", "task")}
    image, latency = request.image_size, request.max_latency_ms
    return {
        **options,
        "target": request.target,
        "max_drop": f"{request.max_drop:g}{request.max_drop_unit or ''}",
        "max_size": request.max_size_bytes,
        "max_latency": f"{latency:g}ms" if latency else None,
        "max_memory": request.max_memory_bytes,
        "goal": request.goal if request.goal != usual["goal"] or request.limited else None,
        **{f"{part}_data": name for part, name in request.data.items()},
        "batch": request.batch if request.batch != usual["batch"] else None,
        "seq_len": request.seq_len,
        "image_size": "x".join(map(str, image)) if image else None,
        "threads": request.threads,
        "knowledge": request.knowledge,
        "seed": request.seed or None,
    }


def command(name: str, model: str, options: Settings) -> str:
    """An advisor command on a model; options without a value are left out."""
    given = {option: value for option, value in options.items() if value not in (None, "")}
    words = [word for option, value in given.items() for word in (f"--{option.replace('_', '-')}", text_of(value))]
    return shlex.join(["advisor", name, model, *words])


def text_of(value: Any) -> str:
    """A value as the command line and YAML read it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _code(plan: Plan) -> list[str]:
    return ["--allow-code"] if is_factory(plan.model) or is_function(plan.metric) else []

"""lm-eval tasks by name: found, checked for code, loaded, and put to two models."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import numpy as np
from jinja2.sandbox import SandboxedEnvironment
from lm_eval import utils
from lm_eval.api.registry import metric_registry
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from backends import huggingface
from backends.harness.model import HarnessModel
from backends.harness.trust import check_code
from backends.onnx.verification import TaskScore
from knowledge.faults import first_line
from knowledge.names import nearest
from knowledge.values import InputError, RunFailed

OWN = Path(lm_eval.__file__).parent / "tasks"
SEED = 1234  # of the examples before a question, as lm-eval has it
BOOTSTRAPS = 1000
ERROR = "_stderr"


def load_tasks(names: Sequence[str], folder: Path | None, allow_code: bool) -> Any:
    """Tasks, groups and tags, by name or as paths of YAML files, with their data.

    `folder` holds the user's own. Raises InputError for a name that nobody knows, for one whose YAML would run code of
    the user's unless `allow_code`, and for a task or data that cannot be loaded.
    """
    with quiet():
        manager = _manager(names, folder)
        index = manager.task_index

        def lookup(name: str) -> tuple[Path | None, Sequence[str]]:
            entry = index.get(name)
            if entry is None:
                return (Path(name), ()) if Path(name).is_file() else (None, ())
            return entry.yaml_path, () if entry.yaml_path else sorted(entry.tags)

        for name in names:
            if name not in index and not Path(name).is_file():
                remedy = _nearest(name, list(index))
                raise InputError("lm-eval", name, "no such task", remedy)
        if not allow_code:
            check_code(names, lookup, OWN, list(metric_registry))
        try:
            return manager.load(list(names))
        except Exception as error:  # tasks fail in as many ways as there are
            problem = f"cannot be loaded: {type(error).__name__}: {first_line(error)[:300]}"
            remedy = "check the task's YAML and its data"
            raise InputError("lm-eval", ",".join(names), problem, remedy) from error


def _manager(names: Sequence[str], folder: Path | None) -> TaskManager:
    """Without the library's own tasks, of which there are thousands, where the user's do without them."""
    if folder is not None or all(Path(name).is_file() for name in names):
        own = TaskManager(include_path=folder, include_defaults=False)
        index = own.task_index
        if all(_complete(name, index) or (name not in index and Path(name).is_file()) for name in names):
            return own
    return TaskManager(include_path=folder)


def _complete(name: str, index: Any, above: tuple[str, ...] = ()) -> bool:
    """Whether a task, and all members of a group or a tag, are in this index."""
    entry = index.get(name)
    if entry is None or name in above:
        return False
    listed = entry.tags if entry.yaml_path is None else entry.cfg.get("task")
    if isinstance(listed, str):
        return True
    members = [one if isinstance(one, str) else one.get("group", one.get("task")) for one in listed or ()]
    return all(_complete(member, index, (*above, name)) for member in members)


def _nearest(name: str, known: list[str]) -> str:
    found = nearest(name, known)
    return found if found.startswith("did you mean") else "name the folder of your own tasks with --lm-eval-include"


def compare(tasks: Any, baseline: HarnessModel, compressed: HarnessModel, limit: int | None, code: bool) -> list[Any]:
    """Both models' scores on the first `limit` documents of each task, or on all. Raises RunFailed, InputError."""
    before, after = (answers(tasks, model, limit, code) for model in (baseline, compressed))
    found = []
    for task, values in {**after["results"], **after.get("groups", {})}.items():
        for key in values:
            metric, _, kept = key.partition(",")
            if kept and not metric.endswith(ERROR):
                found.append(_score(task, metric, kept, before, after))
    return found


def answers(tasks: Any, model: HarnessModel, limit: int | None, allow_code: bool = False) -> Any:
    """lm-eval's own results for one model, as its `evaluate` gives them. Raises RunFailed, InputError."""
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    with quiet():
        try:
            return evaluate(
                lm=model,
                task_dict=tasks,
                limit=limit,
                bootstrap_iters=BOOTSTRAPS,
                confirm_run_unsafe_code=allow_code,
            )
        except (InputError, RunFailed):
            raise
        except Exception as error:  # as many ways as there are tasks
            raise RunFailed(f"lm-eval: {type(error).__name__}: {first_line(error)[:300]}") from error


def _score(task: str, metric: str, kept: str, before: Any, after: Any) -> TaskScore:
    """One metric of a task or a group, `kept` the filter that the answers went through."""
    values = [{**found["results"], **found.get("groups", {})}[task] for found in (before, after)]
    scores = [_finite(found[f"{metric},{kept}"]) for found in values]
    errors = [_finite(found.get(f"{metric}{ERROR},{kept}")) for found in values]
    difference = paired([_documents(found, task, metric, kept) for found in (before, after)], scores)
    members = after.get("group_subtasks", {}).get(task) or [task]
    judged = [name for name in _leaves(members, after) if f"{metric},{kept}" in after["results"][name]]
    counts = [after["n-samples"][name]["effective"] for name in judged]
    return TaskScore(
        task=task,
        metric=metric,
        filter=kept,
        higher_is_better=after["higher_is_better"].get(task, {}).get(metric),
        shots=int(after["n-shot"].get(task) or 0),
        documents=sum(counts),
        baseline=scores[0],
        compressed=scores[1],
        baseline_stderr=errors[0],
        stderr=errors[1],
        difference=difference[0],
        difference_stderr=difference[1],
    )


def paired(documents: Sequence[Sequence[Any]], scores: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Difference of two scores and its standard error, of values document by document; None unless scores are means.

    >>> paired(([1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]), (0.75, 0.5))
    (-0.25, 0.25)
    """
    first, second = scores
    if first is None or second is None:
        return None, None
    difference = second - first
    kinds = {type(value) for values in documents for value in values}
    if not kinds or not kinds <= {int, float, bool, np.float64} or len(documents[0]) != len(documents[1]):
        return difference, None
    a, b = (np.array(values, float) for values in documents)
    means = math.isclose(a.mean(), first, abs_tol=1e-9) and math.isclose(b.mean(), second, abs_tol=1e-9)
    if not means or len(a) < 2:
        return difference, None
    return difference, float((b - a).std(ddof=1) / math.sqrt(len(a)))


def _documents(found: Any, task: str, metric: str, kept: str) -> list[Any]:
    samples = found.get("samples", {}).get(task, ())
    return [sample[metric] for sample in samples if sample["filter"] == kept and metric in sample]


def _leaves(names: Sequence[str], found: Any) -> list[str]:
    """The tasks behind groups."""
    inner = found.get("group_subtasks", {})
    return [leaf for name in names for leaf in (_leaves(inner[name], found) if inner.get(name) else [name])]


def _finite(value: Any) -> float | None:
    """A number as it is; None for what lm-eval writes where it has none."""
    known = isinstance(value, (int, float, np.floating)) and math.isfinite(value)
    return float(value) if known else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's bars and talk off the terminal, templates in a sandbox, and the bootstrap in this process.

    Templates of tasks are Jinja, which reaches all of Python unless it is kept in.
    """
    logger, level, templates = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level, utils.env
    bars, before = datasets.are_progress_bars_disabled(), os.environ.get("DISABLE_MULTIPROC")
    sandbox = SandboxedEnvironment(
        loader=templates.loader, undefined=templates.undefined, keep_trailing_newline=templates.keep_trailing_newline
    )
    sandbox.filters = copy.copy(templates.filters)
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    os.environ["DISABLE_MULTIPROC"] = "1"
    utils.env = sandbox
    try:
        streams = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with huggingface.quiet(), streams[0], streams[1]:
            yield
    finally:
        utils.env = templates
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before

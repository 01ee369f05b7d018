"""What models are for: the tasks, the metrics that judge them, and what of a transformers model tells its task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from knowledge.names import nearest
from knowledge.sources import is_function
from knowledge.values import InputError

Kind = Literal["accuracy", "perplexity", "similarity", "fidelity"]

FIDELITY = "fidelity"  # judged against the model's own outputs, whatever it is for: no labels are needed
# task -> (kind of quality, unit in which its loss is counted)
TASKS: dict[str, tuple[Kind, Literal["pp", "%"]]] = {
    "causal-lm": ("perplexity", "%"),
    "text-classification": ("accuracy", "pp"),
    "image-classification": ("accuracy", "pp"),
    "sequence-classification": ("accuracy", "pp"),
    "embedding": ("similarity", "%"),
    FIDELITY: ("fidelity", "pp"),
}
METRICS: dict[str, tuple[str, ...]] = {  # the first is the default
    "causal-lm": ("perplexity",),
    **dict.fromkeys((task for task in TASKS if task.endswith("-classification")), ("accuracy", "f1")),
    "embedding": ("cosine", "spearman"),
    FIDELITY: ("agreement", "kl"),
}
NOT_YET = ("detection", "object-detection", "segmentation", "image-segmentation")

TASK_OF_SUFFIX = {  # the first that fits
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
    "ForMaskedLM": "embedding",
    "Model": "embedding",
}

TRANSFORMERS = tuple(dict.fromkeys(TASK_OF_SUFFIX.values()))  # tasks that transformers models are loaded for


def task_of_classes(names: Iterable[str]) -> str | None:
    """Task of the first class with a known ending.

    >>> task_of_classes(["LlamaForCausalLM"])
    'causal-lm'
    """
    found = (task for name in names for suffix, task in TASK_OF_SUFFIX.items() if name.endswith(suffix))
    return next(found, None)


def own_task(task: str | None) -> str | None:
    """The task that a model is asked to have; None where it says itself what it is for."""
    return None if task == FIDELITY else task or None


def check_task(task: str) -> None:
    """Raise InputError for a task that nobody knows, with the nearest names."""
    if task in NOT_YET:
        raise InputError("task", task, "is not supported yet", f"supported: {', '.join(TASKS)}")
    if task not in TASKS:
        raise InputError("task", task, "unknown task", nearest(task, TASKS))


def check_metric(task: str, metric: str) -> None:
    """Raise InputError for a metric that does not judge a task, with the nearest names; the user's own passes."""
    known = METRICS[task]
    if metric and not is_function(metric) and metric not in known:
        raise InputError("metric", metric, f"unknown metric for {task}", nearest(metric, known, "module:function"))


def check_told(field: str, told: str | None, own: str, source: str) -> None:
    """Raise InputError where a model that says itself what it is was called something else."""
    if told and told != own:
        raise InputError(field, told, f"{source} is {own}", f"leave out --{field}")


def check_transformers(task: str, vocabulary: int, source: str) -> None:
    """Raise InputError for a task that a transformers model cannot have: one of tokens does not classify images."""
    if task not in TRANSFORMERS:
        raise InputError("task", task, f"{source} is a transformers model", f"choose among {', '.join(TRANSFORMERS)}")
    if task == "image-classification" and vocabulary:
        problem = f"{source} reads tokens (a vocabulary of {vocabulary:,}), not images"
        raise InputError("task", task, problem, "leave out --task, or name a task of text")
    if task in ("causal-lm", "text-classification") and not vocabulary:
        raise InputError("task", task, f"{source} reads images, not tokens", "leave out --task")

"""The task of a transformers model, by the class that its configuration names."""

from __future__ import annotations

from collections.abc import Iterable

TASK_OF_SUFFIX = {  # the first that fits
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
    "ForMaskedLM": "embedding",
    "Model": "embedding",
}


def task_of_classes(names: Iterable[str]) -> str | None:
    """Task of the first class with a known ending.

    >>> task_of_classes(["LlamaForCausalLM"])
    'causal-lm'
    """
    found = (task for name in names for suffix, task in TASK_OF_SUFFIX.items() if name.endswith(suffix))
    return next(found, None)

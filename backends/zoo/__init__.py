"""Embedded example models, each trained for real, with data of their own."""

from __future__ import annotations

DIGITS = ("digits-cnn", "digits-dwcnn", "digits-lstm", "digits-vit")
LANGUAGE = ("stdlib-lm", "stdlib-lm-large", "stdlib-gpt2", "stdlib-moe")
SENTENCES = ("minilm",)


def zoo_names() -> tuple[str, ...]:
    """Names after `zoo:`, in the order in which they are listed."""
    return DIGITS + LANGUAGE + SENTENCES

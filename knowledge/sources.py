"""Which names stand for the user's own code, so that nothing imports it unasked."""

from __future__ import annotations

import re

FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_factory(model: str) -> bool:
    """Whether a model's name is `package.module:factory`.

    >>> [is_factory(name) for name in ("mymodels.cnn:make", "zoo:minilm", "models/bert", "model.onnx")]
    [True, False, False, False]
    """
    return not model.startswith("zoo:") and FACTORY.fullmatch(model) is not None


def is_function(metric: str) -> bool:
    """Whether a metric's name is the user's `module:function`: with a colon, anything is imported.

    >>> [is_function(name) for name in ("f1", "mine:score", "zoo:x", "evil-mod:f", "evil:a.b")]
    [False, True, True, True, True]
    """
    return ":" in metric

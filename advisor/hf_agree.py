"""Whether a folder's weights are those that its configuration describes, as far as names and shapes tell."""

from __future__ import annotations

import re
from collections.abc import Mapping

from advisor.hf_facts import Config, experts_of
from advisor.hf_files import Shapes, number
from knowledge.configs import OF_THESE_WEIGHTS, shape_text
from knowledge.values import InputError

_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_BLOCKS = ("num_hidden_layers", "n_layer", "n_layers")
_SHARED_BLOCKS = "num_hidden_groups"  # one block stands for several
# first axis of these weights -> the field that says how long it is
_LENGTHS = (
    (re.compile(r"(^|\.)(word_embeddings|embed_tokens|wte|embed_in)\.weight$"), ("vocab_size",)),
    (re.compile(r"(^|\.)(position_embeddings|wpe)\.weight$"), ("max_position_embeddings", "n_positions")),
)
_DENSE_FFN = re.compile(r"\.(intermediate\.dense|gate_proj|up_proj)\.weight$")
_HEAD = re.compile(r"^(classifier|score|classifier\.out_proj)\.weight$")
_WIDTH = re.compile(r"hidden_size|n_embd|embed|^dim$|d_model")


def agreeing(shapes: Shapes, config: Config, source: str) -> tuple[Shapes, str]:
    """The tensors that the configured model has, and what is to be said of those that it has not.

    Raises InputError naming the first tensor whose shape is not the configured one, and where blocks are missing.
    """
    blocks = next((n for name in _BLOCKS if (n := number(config, name))), 0)
    numbers = {name: int(found[1]) for name in shapes if (found := _BLOCK.search(name))}
    held = max(numbers.values(), default=-1) + 1
    field = next((name for name in _BLOCKS if name in config), _BLOCKS[0])
    if blocks and held and held < blocks and _SHARED_BLOCKS not in config:
        problem = f"config.json says {field} {blocks}, and the weights hold {held} blocks"
        raise InputError("model", source, problem, OF_THESE_WEIGHTS)
    for name, shape in shapes.items():
        _check_shape(name, shape, config, source)
    if not blocks or held <= blocks:
        return shapes, ""
    kept = {name: shape for name, shape in shapes.items() if numbers.get(name, 0) < blocks}
    left = f"block {blocks}" if held == blocks + 1 else f"blocks {blocks} to {held - 1}"
    return kept, f"{len(shapes) - len(kept)} tensors of {left} are left out: config.json says {field} {blocks}"


def _check_shape(name: str, shape: tuple[int, ...], config: Config, source: str) -> None:
    """Raise InputError where the configuration tells another first axis, or another width of the token embedding."""
    if not shape:
        return
    for pattern, fields in _LENGTHS:
        length = number(config, *fields)
        if pattern.search(name) and length:
            _check_axis(name, shape, 0, length, next(f for f in fields if f in config), source)
    if _DENSE_FFN.search(name) and experts_of(config) < 2 and (ffn := number(config, "intermediate_size")):
        _check_axis(name, shape, 0, ffn, "intermediate_size", source)
    labels = config.get("id2label")
    if _HEAD.search(name) and isinstance(labels, Mapping) and labels:
        _check_axis(name, shape, 0, len(labels), "classes:", source)
    hidden = next((f for f in ("hidden_size", "n_embd", "d_model", "dim") if number(config, f)), "")
    if _LENGTHS[0][0].search(name) and hidden and len(shape) == 2:
        widths = [n for f, n in config.items() if isinstance(n, int) and _WIDTH.search(f)]
        if shape[1] not in widths:
            _check_axis(name, shape, 1, number(config, hidden), hidden, source)


def _check_axis(name: str, shape: tuple[int, ...], axis: int, length: int, field: str, source: str) -> None:
    if shape[axis] == length:
        return
    held, told = shape_text(shape), shape_text((*shape[:axis], length, *shape[axis + 1 :]))
    problem = f"weight {name} has shape {held}, and config.json makes it {told} ({field} {length})"
    raise InputError("model", source, problem, OF_THESE_WEIGHTS)

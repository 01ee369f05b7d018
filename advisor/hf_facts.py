"""Family, task and widths of a transformers model, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from advisor.hf_files import number
from knowledge.configs import OF_THESE_WEIGHTS, longest_of, vocabulary_of
from knowledge.layers import Family, ModelInfo
from knowledge.tasks import TRANSFORMERS, check_told, task_of_classes
from knowledge.values import InputError

Config = Mapping[str, Any]

_SUBFAMILIES = {"causal-lm": "decoder", "image-classification": "vision-transformer"}
CONVOLUTIONAL = {
    "resnet", "convnext", "convnextv2", "mobilenet_v1", "mobilenet_v2", "efficientnet", "regnet", "bit", "poolformer",
}  # fmt: skip
# configurations that do not repeat their defaults
_TIED = {"gpt2", "opt", "bloom", "gemma", "gemma2", "gemma3_text", "openai-gpt", "gpt_neo", "xglm", "codegen", "falcon"}


def experts_of(config: Config) -> int:
    """Experts per block; 0 for a dense model."""
    return number(config, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def classes_of(config: Config) -> list[str]:
    """Names of the classes that the configuration was saved from."""
    named = config.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def task_of(config: Config, source: str) -> str:
    """Task of the class that the configuration names; raises InputError asking for --task when it tells none."""
    named = classes_of(config)
    task = task_of_classes(named)
    if task is not None:
        return task
    what = ", ".join(named) or "no architecture"
    raise InputError(
        "task", source, f"config.json names {what}, which tells no known task", f"add --task {' | '.join(TRANSFORMERS)}"
    )


def family_of(config: Config, source: str, told: str | None) -> Family:
    """Architecture family; `told` decides where the configuration does not.

    Raises InputError asking for --arch when unclear, and for another family than the configuration's.
    """
    own = _family(config)
    if own is not None:
        check_told("arch", told, own, source)
        return own
    if told is not None:
        return cast(Family, told)
    kind = config.get("model_type")
    what = f"config.json says model_type {kind!r}" if kind else "config.json says no model_type"
    families = " | ".join(get_args(Family))
    raise InputError(
        "arch", source, f"the architecture is unclear: {what} and no attention heads", f"add --arch {families}"
    )


def _family(config: Config) -> Family | None:
    """The family that a configuration tells, where it tells one."""
    if experts_of(config) > 1:
        return "moe"
    if number(config, "num_attention_heads", "n_head", "n_heads"):
        return "transformer"
    return "cnn" if config.get("model_type") in CONVOLUTIONAL else None


def facts_of(config: Config, source: str, task: str, family: Family) -> ModelInfo:
    """What the configuration tells of a transformer; widths that it leaves out are filled in from the rows later."""
    hidden = number(config, "hidden_size", "n_embd", "dim", "d_model")
    heads = number(config, "num_attention_heads", "n_head", "n_heads")
    vocabulary = vocabulary_of(config)
    return ModelInfo(
        name=Path(source).name or source,
        family=family,
        task=task,
        subfamily="moe" if family == "moe" else _SUBFAMILIES.get(task, "encoder"),
        architecture=next(iter(classes_of(config)), ""),
        vocab_size=vocabulary,
        hidden_size=hidden,
        ffn_size=number(config, "intermediate_size", "n_inner", "hidden_dim", "ffn_dim") or 4 * hidden,
        heads=heads,
        kv_heads=number(config, "num_key_value_heads") or heads,
        head_dim=number(config, "head_dim") or (hidden // heads if heads else 0),
        blocks=number(config, "num_hidden_layers", "n_layer", "n_layers"),
        experts=experts_of(config) if family == "moe" else 0,
        experts_per_token=number(config, "num_experts_per_tok", "moe_k") if family == "moe" else 0,
        max_length=longest_of(config),
        image_size=(0, 0, 0) if vocabulary else image_of(config, source),
    )


def image_of(config: Config, source: str) -> tuple[int, int, int]:
    """Channels, height and width of the images that a vision model takes; raises InputError where they are no sizes."""
    size = config.get("image_size") or 224
    sides = list(size) if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError("model", source, f"config.json says image_size {size}", OF_THESE_WEIGHTS)
    return number(config, "num_channels") or 3, sides[0], sides[1]


def is_tied(config: Config) -> bool:
    """Whether head and token embedding are one matrix, where the file holds both."""
    told = config.get("tie_word_embeddings")
    return bool(told) if told is not None else config.get("model_type") in _TIED

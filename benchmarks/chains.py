"""The chains that evidence is collected of: every runnable technique at several strengths, and the common pairs.

A chain is written as `channels ratio=0.5 + finetune + int8_static calibration=percentile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain as joined

import yaml

from knowledge.layers import LayerTable
from knowledge.techniques.base import Family
from knowledge.techniques.catalog import CATALOG, build
from knowledge.values import InputError, Stage

FILES = (  # on the file: nothing is trained, nothing is taken out
    "int8_dynamic",
    "int8_static",
    "fp16",
    "int8_dynamic smooth=0.4",
    "int8_static calibration=percentile",
    "int8_dynamic smooth=0.8",
    "int8_dynamic embeddings=false",
    "int8_static smooth=0.5",
    "graph_fusion",
    "int8_dynamic + graph_fusion",
    "int8_static calibration=percentile smooth=0.5",
    "int8_dynamic smooth=0.2",
    "int8_static embeddings=false",
    "int8_dynamic smooth=0.6",
    "weight_only group_size=32",
    "gptq group_size=32",
    "awq group_size=32",
    "weight_only bits=8",
    "nf4",
    "weight_only bits=3 group_size=64",
    "gptq bits=3 group_size=64",
    "awq bits=3 group_size=64",
    "weight_only",
    "gptq",
    "awq",
    "weight_only bits=2 group_size=32",
    "gptq bits=2 group_size=32",
    "awq bits=2 group_size=32",
    "weight_only group_size=32 symmetric=true",
    "gptq group_size=32 symmetric=true",
    "awq group_size=32 symmetric=true",
    "nf4 group_size=32",
    "mixed_precision",
    "experts_int4",
    "mixed_precision share=0.5",
    "mixed_precision share=1.0",
    "experts_int4 group_size=32",
)
ONE_SHOT = (
    "layer_drop blocks=1",
    "svd ratio=0.8",
    "channels ratio=0.2",
    "magnitude ratio=0.5",
    "svd ratio=0.6",
    "layer_drop blocks=2",
    "magnitude ratio=0.3",
    "channels ratio=0.1",
    "svd ratio=0.8 + int8_dynamic",
    "layer_drop blocks=1 + int8_dynamic",
    "channels ratio=0.3",
    "magnitude ratio=0.7",
    "svd ratio=0.9",
    "channels ratio=0.2 importance=taylor",
    "layer_drop blocks=3",
    "svd ratio=0.7",
    "magnitude ratio=0.5 scope=local",
    "channels ratio=0.2 + int8_static",
    "magnitude ratio=0.6",
    "layer_drop blocks=2 + int8_dynamic",
    "svd ratio=0.4",
    "svd ratio=0.6 + int8_dynamic",
    "channels ratio=0.2 importance=l1",
    "magnitude ratio=0.4",
    "layer_drop blocks=4",
    "svd ratio=0.5",
    "magnitude ratio=0.5 + int8_dynamic",
    "magnitude ratio=0.5 + int8_static",
    "channels ratio=0.5",
    "magnitude ratio=0.7 scope=local",
    "magnitude ratio=0.2",
    "magnitude ratio=0.8",
    "wanda ratio=0.5",
    "sparsegpt ratio=0.5",
    "wanda pattern=2:4",
    "sparsegpt pattern=2:4",
    "wanda ratio=0.7",
    "sparsegpt ratio=0.7",
    "wanda ratio=0.3",
    "sparsegpt ratio=0.3",
)
TRAINED = (
    "channels ratio=0.5 + finetune",
    "layer_drop blocks=1 + finetune",
    "distill compression=2.0",
    "svd ratio=0.6 + finetune",
    "magnitude ratio=0.7 + finetune",
    "layer_drop blocks=2 + finetune",
    "channels ratio=0.3 + finetune",
    "distill compression=3.0",
    "svd ratio=0.4 + finetune",
    "channels ratio=0.7 + finetune",
    "magnitude ratio=0.5 + finetune",
    "distill compression=1.5",
    "magnitude ratio=0.8 + finetune",
    "channels ratio=0.6 + finetune",
    "layer_drop blocks=3 + finetune",
    "distill compression=4.0",
    "svd ratio=0.8 + finetune",
    "channels ratio=0.5 importance=taylor + finetune",
    "magnitude ratio=0.9 + finetune",
    "distill compression=2.0 epochs=6",
    "channels ratio=0.4 + finetune",
    "channels ratio=0.5 + finetune epochs=6",
    "svd ratio=0.3 + finetune",
)
TRAINED_ON_TEXT = (  # training takes minutes there, so it is less and begins later
    "layer_drop blocks=1 + finetune",
    "layer_drop blocks=1 + finetune learning_rate=0.0001",
    "distill compression=2.0",
    "svd ratio=0.6 + finetune learning_rate=0.0001",
    "magnitude ratio=0.7 + finetune",
    "layer_drop blocks=2 + finetune",
    "svd ratio=0.6 + finetune",
    "distill compression=3.0",
)


def chains(layers: LayerTable) -> list[str]:
    """The chains that apply to a model, so ordered that a collection which is cut short has some of every kind."""
    text = bool(layers.info.vocab_size)
    trained = TRAINED_ON_TEXT if text else TRAINED
    last = "int8_static" if layers.info.family == "cnn" else "int8_dynamic"
    lists = (FILES, ONE_SHOT, tuple(joined.from_iterable((t, f"{t} + {last}") for t in trained)))
    placed = []
    for texts, begin in zip(lists, (0.0, 0.0, 0.4 if text else 0.0), strict=True):
        chosen = [written for written in texts if applies(written, layers)]
        placed += [(begin + (1 - begin) * (n + 1) / len(chosen), written) for n, written in enumerate(chosen)]
    return [written for _, written in sorted(placed)]


def parse(text: str, layers: LayerTable) -> tuple[Stage, ...]:
    """The stages of a written chain. `layer_drop blocks=2` is the ratio that drops two of this model's blocks.

    Raises InputError.
    """
    stages = []
    for part in text.split(" + "):
        name, *settings = part.split()
        params = {key: yaml.safe_load(value) for key, _, value in (setting.partition("=") for setting in settings)}
        if name == "layer_drop" and "blocks" in params:
            params["ratio"] = round(params.pop("blocks") / max(layers.info.blocks, 1), 3)
        stage = Stage(technique=name, params=params)
        stages.append(Stage(technique=name, params=build(stage, "chain").model_dump(mode="json")))
    return tuple(stages)


def applies(text: str, layers: LayerTable) -> bool:
    """Whether every stage changes the model as it then is, and every parameter that is named matters to it."""
    try:
        stages = parse(text, layers)
    except InputError:  # more blocks than there are
        return False
    named = {word.partition("=")[0] for word in text.split() if "=" in word}
    for stage in stages:
        technique = build(stage)
        cls = CATALOG[stage.technique]
        ignored = set(cls.space()) - set(cls.space_for(layers))
        if ignored & named or any(True for _ in technique.refusals(layers)):
            return False
        if technique.family is Family.QUANTIZE and "smooth" in named and not smoothed(layers):
            return False
        layers = technique.effect(layers)
    return True


def smoothed(layers: LayerTable) -> bool:
    """Whether there are outliers to migrate: dense layers inside the model."""
    return bool(((layers.kind == "linear") & (layers.block >= 0)).any())


def names(stages: Sequence[Stage]) -> str:
    """`channels+finetune`"""
    return "+".join(stage.technique for stage in stages)

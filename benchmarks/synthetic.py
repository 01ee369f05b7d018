"""Synthetic techniques and rules, for measuring how the advisor scales; the same for the same numbers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from knowledge.conditions import VOCABULARY
from knowledge.techniques.base import Family, Range, Technique
from knowledge.techniques.catalog import CATALOG

PER_FILE = 250
FACTS = ("arch", "subfamily", "target.class", "target.accelerates", "goal", "training", "data_level", "limits")
NUMBERS = {"max_drop_pp": (0, 8), "embedding_share": (0, 1), "parameters": (1e6, 1e9), "wanted_ratio": (1, 16)}
PHASES = ("distill", "reshape", "factorize", "prune", "quantize")


def add_techniques(total: int) -> None:
    """Fill the catalogue up to `total` techniques: those there are, under other ids."""
    models = [cls for cls in CATALOG.values() if cls.phase is not None and cls.family is not Family.FUSE]
    for number in range(total - len(CATALOG)):
        base = models[number % len(models)]
        name = f"{base.id}_{number:03}"
        made: type[Technique] = type(
            name, (base,), {"id": name, "__doc__": base.__doc__, "__module__": base.__module__}
        )
        CATALOG[name] = made


def write_rules(folder: Path, count: int, seed: int = 0) -> None:
    """YAML files with `count` rules of every kind about every technique in the catalogue."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rules = [_rule(draw, number) for number in range(count)]
    for start in range(0, count, PER_FILE):
        text = yaml.dump({"tree": f"Tree {start}", "rules": rules[start : start + PER_FILE]}, Dumper=yaml.CSafeDumper)
        (folder / f"{start:05}.yaml").write_text(text)


def _rule(draw: random.Random, number: int) -> dict[str, Any]:
    when = dict(_test(draw) for _ in range(draw.randint(1, 3)))
    if draw.random() < 0.2:
        when["any"] = [dict([_test(draw)]) for _ in range(2)]
    return {
        "id": f"synthetic-{number}",
        "when": when,
        "then": [_conclusion(draw)],
        "text": f"Because of fact {number}: {{arch}} on {{target}}.",
        "source": f"a synthetic document, section {number}",
    }


def _test(draw: random.Random) -> tuple[str, Any]:
    if draw.random() < 0.3:
        name = draw.choice(list(NUMBERS))
        low, high = NUMBERS[name]
        return name, {draw.choice(("lt", "ge")): round(draw.uniform(low, high), 2)}
    name = draw.choice(FACTS)
    if name == "limits":
        return name, draw.random() < 0.5
    values = VOCABULARY[name].values
    return name, draw.sample(values, draw.randint(1, len(values) - 1))


def _conclusion(draw: random.Random) -> dict[str, Any]:
    name, kind = draw.choice(list(CATALOG)), draw.random()
    cls = CATALOG[name]
    if kind < 0.45:
        about = {"technique": name} if draw.random() < 0.8 else {"family": cls.family.value}
        return {draw.choice(("prefer", "prefer", "avoid")): {**about, "weight": round(draw.uniform(0.1, 1.5), 1)}}
    if kind < 0.6:
        return {"refuse": {"technique": name}}
    if kind < 0.75:
        ranges = {param: space for param, space in cls.space().items() if isinstance(space, Range)}
        if ranges:
            param, space = draw.choice(list(ranges.items()))
            start = type(cls.model_fields[param].default or 0.0)(f"{draw.uniform(space.low, space.high):.3g}")
            return {"set": {"technique": name, "param": param, "start": start}}
    if kind < 0.85:
        first = draw.randrange(len(PHASES) - 1)
        return {"before": {"first": PHASES[first], "then": draw.choice(PHASES[first + 1 :])}}
    if kind < 0.9 and cls.family in (Family.RESHAPE, Family.PRUNE, Family.FACTORIZE):
        return {"require": {"technique": "finetune", "after": {"technique": name}}}
    return {"warn": {"technique": name}}

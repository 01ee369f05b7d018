"""Typical models, for a request that names none: exact tables built from a few sizes in models/*.yaml."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field

from knowledge.layers import Family, LayerTable
from knowledge.shapes import BUILDERS
from knowledge.students import solve_shape
from knowledge.values import InputError, Value, Workload

FOLDER = Path(__file__).parent / "models"
DEFAULT_SEQ_LEN = 128
WIDTH_STEP = 4


class TypicalModel(Value):
    """One typical model: the sizes it is built from, and where they come from."""

    id: str
    shape: Literal["bert", "llama", "mixtral", "vit", "resnet", "lstm"]
    info: dict[str, str]
    default_for: tuple[str, ...] = ()
    sizes: dict[str, int | tuple[int, ...]]
    parameters: Annotated[int, Field(gt=0)]  # of the original, as a check on the sizes
    source: str


@cache
def typical_models() -> tuple[TypicalModel, ...]:
    """All of them, by file name."""
    texts = [path.read_text() for path in sorted(FOLDER.glob("*.yaml"))]
    return tuple(TypicalModel.model_validate(yaml.load(text, Loader=yaml.CSafeLoader)) for text in texts)


def typical(
    arch: str, task: str | None = None, params: int | None = None, workload: Workload | None = None
) -> LayerTable:
    """The table of the model that stands for an architecture family, scaled to about `params` parameters.

    Depth and width are scaled alike, on the exact count; the vocabulary stays. The name in `info` says what it is.
    Raises InputError for an unknown family, a task that it has no typical model for, or parameters that it cannot have.
    """
    families = get_args(Family)
    if arch not in families:
        near = difflib.get_close_matches(arch, families, n=1) or families
        raise InputError("arch", arch, "unknown architecture", f"did you mean {' or '.join(near)}?")
    own = [m for m in typical_models() if m.info["family"] == arch]
    found = [m for m in own if m.info["task"] == task] if task else [m for m in own if arch in m.default_for]
    if not found:
        known = ", ".join(sorted({m.info["task"] for m in own}))
        raise InputError("task", task, f"there is no typical {arch} model for it", f"known: {known}; or give MODEL")
    workload = workload or Workload()
    if params is None:
        return _built(found[0], found[0].sizes, found[0].id, workload)
    scaled = _built(found[0], _scaled(found[0], params, workload), found[0].id, workload)
    return scaled.with_info(name=f"{found[0].id} scaled to {scaled.parameters:,} parameters")


def build(model: TypicalModel, workload: Workload | None = None) -> LayerTable:
    """The table of one typical model at its own size."""
    return _built(model, model.sizes, model.id, workload or Workload())


def _built(model: TypicalModel, sizes: Mapping[str, Any], name: str, workload: Workload) -> LayerTable:
    return BUILDERS[model.shape]({**sizes, **_sample(sizes, workload)}, {**model.info, "name": name, "typical": True})


def _sample(sizes: Mapping[str, Any], workload: Workload) -> dict[str, int]:
    """Sequence length, as far as the model reads, or image size of one sample; raises InputError where it cannot be."""
    if "image" not in sizes:
        return {
            "seq_len": min(workload.seq_len or sizes.get("seq_len", DEFAULT_SEQ_LEN), sizes.get("max_length", 10**9))
        }
    if workload.image_size is None:
        return {}
    channels, height, width = workload.image_size
    patch = sizes.get("patch", 1)
    if height != width or height % patch:
        raise InputError("image-size", f"{height}x{width}", f"a typical model takes square images in steps of {patch}")
    return {"image": height, "channels": channels}


def _scaled(model: TypicalModel, params: int, workload: Workload) -> dict[str, Any]:
    """Sizes with which the model has about `params` parameters; raises InputError where there are none."""
    table = build(model, workload)
    ratio = params / table.parameters
    if model.shape in ("resnet", "lstm"):
        return _scaled_width(model, params, workload)
    grow = 1.0 if ratio <= 1 else 1 + 1.5 * ratio ** (1 / 3)
    shape = solve_shape(table, params, grow)
    if shape is None:
        least = (
            f"its vocabulary of {table.info.vocab_size:,} alone needs more"
            if table.info.vocab_size
            else "it is too small"
        )
        raise InputError(
            "params", f"{params:,}", f"no {model.id} has so few parameters: {least}", "give a larger number"
        )
    return {**model.sizes, **shape.model_dump(exclude_none=True)}


def _scaled_width(model: TypicalModel, params: int, workload: Workload) -> dict[str, Any]:
    name = "width" if model.shape == "resnet" else "hidden_size"

    def count(steps: int) -> int:
        return _built(model, {**model.sizes, name: WIDTH_STEP * steps}, model.id, workload).parameters

    low, high = 1, 2
    while count(high) < params:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= params else (middle, high)
    best = min((low, high), key=lambda steps: abs(count(steps) - params))
    if count(1) > 2 * params:
        raise InputError("params", f"{params:,}", f"no {model.id} has so few parameters", f"give at least {count(1):,}")
    return {**model.sizes, name: WIDTH_STEP * best}

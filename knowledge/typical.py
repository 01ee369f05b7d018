"""Typical models, for a request that names none: exact tables built from a few sizes in models/*.yaml."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from knowledge.faults import Fault
from knowledge.layers import Family, LayerTable
from knowledge.names import nearest
from knowledge.reading import Kind, layers, merged
from knowledge.schema import Id, Text
from knowledge.shapes import BUILDERS
from knowledge.students import solve_shape
from knowledge.values import InputError, Value, Workload

DEFAULT_SEQ_LEN = 128
WIDTH_STEP = 4
_BLOCKS = ("blocks", "hidden_size", "ffn_size", "heads")
_TEXT, _IMAGE = ("vocab_size", "max_length"), ("image", "channels", "classes")
SIZES: dict[str, tuple[str, ...]] = {  # that each shape is built from
    "bert": (*_BLOCKS, *_TEXT, "classes"),
    "llama": (*_BLOCKS, *_TEXT, "kv_heads"),
    "mixtral": (*_BLOCKS, *_TEXT, "kv_heads", "experts", "experts_per_token"),
    "vit": (*_BLOCKS, *_IMAGE, "patch"),
    "resnet": ("width", "stages", *_IMAGE),
    "lstm": ("layers", "hidden_size", "features", "classes", "seq_len"),
}


class TypicalModel(Value):
    """One typical model: the sizes it is built from, and where they come from."""

    id: Id
    shape: Literal["bert", "llama", "mixtral", "vit", "resnet", "lstm"]
    info: dict[str, str]  # family, task, subfamily, architecture
    default_for: tuple[Family, ...] = ()  # stands for `--arch NAME` where no MODEL is given
    sizes: dict[str, int | tuple[int, ...]]
    parameters: Annotated[int, Field(gt=0)]  # of the original, as a check on the sizes
    source: Text

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        if unknown := set(self.info) - {"family", "task", "subfamily", "architecture"}:
            raise Fault(("info", min(unknown)), "", "unknown field", "known: family, task, subfamily, architecture")
        if self.info.get("family") not in get_args(Family) or not self.info.get("task"):
            raise Fault(("info",), "", "names no family and task", f"families: {', '.join(get_args(Family))}")
        wanted = f"a {self.shape} has {', '.join(SIZES[self.shape])}"
        if missing := [name for name in SIZES[self.shape] if name not in self.sizes]:
            raise Fault(("sizes",), "", f"{', '.join(missing)} missing", wanted)
        for name, size in self.sizes.items():
            if name not in (*SIZES[self.shape], "seq_len"):
                raise Fault(("sizes", name), size, "unknown size", wanted)
            if not _is_count(size, several=name == "stages", least=0 if name == "classes" else 1):
                problem = f"is not {'a list of counts' if name == 'stages' else 'a count'}"
                raise Fault(("sizes", name), size, problem, "give whole numbers above 0")
        for part, whole in (("heads", "hidden_size"), ("patch", "image")):
            if part in self.sizes and self.sizes[whole] % self.sizes[part]:  # type: ignore[operator]
                raise Fault(("sizes", part), self.sizes[part], f"does not divide {whole} {self.sizes[whole]}", wanted)
        return self


def _is_count(size: int | tuple[int, ...], several: bool, least: int) -> bool:
    counts = size if isinstance(size, tuple) else (size,)
    return isinstance(size, tuple) == several and min(counts, default=-1) >= least


MODELS = Kind("models", TypicalModel)


def typical_models(knowledge: Path | str | None = None) -> tuple[TypicalModel, ...]:
    """All of them by id, the user's laid over ours. Raises InputError."""
    return tuple(one.entry for one in merged(MODELS, layers(knowledge)).values())


def typical(
    arch: str,
    task: str | None = None,
    params: int | None = None,
    workload: Workload | None = None,
    knowledge: Path | str | None = None,
) -> LayerTable:
    """The table of the model that stands for an architecture family, scaled to about `params` parameters.

    Depth and width are scaled alike, on the exact count; the vocabulary stays. The name in `info` says what it is.
    Raises InputError for an unknown family, a task that it has no typical model for, or parameters that it cannot have.
    """
    families = get_args(Family)
    if arch not in families:
        raise InputError("arch", arch, "unknown architecture", nearest(arch, families))
    model = stand_in(arch, task, typical_models(knowledge))
    workload = workload or Workload()
    if params is None:
        return build(model, workload)
    scaled = _built(model, _scaled(model, params, workload), model.id, workload)
    return scaled.with_info(name=f"{model.id} scaled to {scaled.parameters:,} parameters")


def stand_in(arch: str, task: str | None, models: Sequence[TypicalModel]) -> TypicalModel:
    """The model that stands for a family and a task: the last that says so, else the first that has both."""
    own = [m for m in models if m.info["family"] == arch]
    fitting = [m for m in own if task in (None, m.info["task"])]
    chosen = [m for m in fitting if arch in m.default_for]
    if not chosen and (task is None or not fitting):
        known = ", ".join(sorted({m.info["task"] for m in own}))
        raise InputError(
            "task", task or "", f"there is no typical {arch} model for it", f"known: {known}; or give MODEL"
        )
    return chosen[-1] if chosen else fitting[0]


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

"""How far a streamed compression came, and under what: a run goes on only where nothing that led there has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from backends.quantize.pack_quantized import Scheme
from knowledge.files import write_text
from knowledge.values import InputError, Value

PROGRESS = "compression.json"
PARTS = {
    "source": "the model's files",
    "method": "the method",
    "form": "the format",
    "calibration": "the calibration tokens",
    "batches": "how many windows pass at once",
    "software": "the program or its libraries",
}


class Key(Value):
    """What the result depends on: hashes, and the method in words."""

    source: str
    method: str
    form: str
    calibration: str
    batches: str
    software: str


class Layer(Value):
    """What became of one layer's matrices."""

    path: str
    matrices: int
    unread: int  # that read no calibration token, or zeros alone: they went by their size
    fewest_tokens: int
    damping: float  # the most that a Hessian took
    inputs: int
    weights: int
    zeros: int  # of the weights
    bytes_before: int
    bytes_after: int
    scheme: Scheme | None = None  # that it is packed in
    scaled: bool = False  # by channel, before it was rounded
    left: str = ""  # why it is not packed, where that was asked for


class Progress(Value):
    """The blocks that are done."""

    schema_version: Literal["advisor.stream/2"] = Field("advisor.stream/2", alias="schema")
    key: Key
    blocks: int
    done: int = 0
    finished: bool = False  # whether the folder is whole
    layers: tuple[Layer, ...] = ()

    model_config = Value.model_config | {"populate_by_name": True}


def read_progress(out: Path, key: Key, blocks: int) -> tuple[Progress, str]:
    """How far a run into this folder came, and why it starts afresh where it cannot go on.

    Raises InputError for a folder that holds something else.
    """
    afresh, path = Progress(key=key, blocks=blocks), out / PROGRESS
    if not path.is_file():
        if any(not one.name.startswith(".") for one in out.iterdir()):
            raise InputError("out", out, "is not empty, and no compression was begun there", "give a new folder")
        return afresh, ""
    try:
        found = Progress.model_validate_json(path.read_bytes())
    except ValidationError:
        return afresh, f"{PROGRESS} cannot be read"
    changed = [words for name, words in PARTS.items() if getattr(found.key, name) != getattr(key, name)]
    return (afresh, f"{' and '.join(changed)} changed") if changed else (found, "")


def write_progress(out: Path, progress: Progress) -> None:
    """Replace the progress file in one step."""
    write_text(out / PROGRESS, progress.model_dump_json(by_alias=True, indent=1))

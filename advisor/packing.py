"""Weights without their zeros beside the file that ships: written where that is the smaller download, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from knowledge.files import write_text

if TYPE_CHECKING:
    from backends.onnx.verification import PackedWeights
    from backends.records import StageRecord
    from backends.runner import Pipeline

FOLDER = "packed"  # in the folder of the ONNX file
USEFUL = 0.95  # of the plain weights' bytes


def packed_weights(pipeline: Pipeline, records: Sequence[StageRecord]) -> tuple[Path, PackedWeights] | None:
    """A stored checkpoint of the pruned torch model that a finished chain exported, and what it takes.

    None where no stage set weights to zero, or where packed weights are hardly smaller than plain ones or than the
    ONNX file. The result is kept under the stage's key, like the stage itself.
    """
    from backends.records import EXPORT
    from backends.store import RECORD, digest
    from backends.structure import pack

    exported = next(i for i, record in enumerate(records) if record.technique == EXPORT)
    if not any(record.decision.density for record in records[:exported]):
        return None
    store, before = pipeline.store, records[exported - 1]
    key = digest(before.key, FOLDER)
    if store.entry(key) is None:
        with store.writing(key) as folder:
            pack(pipeline.folder(before), folder / FOLDER)
            write_text(folder / RECORD, "{}")
    kept = store.entry(key)
    assert kept is not None
    found = packed_beside(kept / "model.onnx")
    assert found is not None
    if found.size_bytes > USEFUL * found.plain_bytes or found.size_bytes >= records[-1].file_bytes:
        return None
    return kept / FOLDER, found


def packed_beside(file: Path) -> PackedWeights | None:
    """What the packed weights beside an ONNX file take; None where there are none.

    Reads all of them: raises InputError unless they are, bit for bit, what was packed.
    """
    from backends.onnx.verification import PackedWeights
    from backends.onnx.verify import download_bytes
    from backends.prune.packed import PACKED, read_packed

    path = file.parent / FOLDER / PACKED
    if not path.exists():
        return None
    plain = sum(tensor.nbytes for _, tensor in read_packed(path))
    return PackedWeights(
        file=f"{FOLDER}/{PACKED}",
        size_bytes=path.stat().st_size,
        download_bytes=download_bytes(path),
        plain_bytes=plain,
    )

"""What a compression block by block left in a folder, and what its calibration data did not tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from knowledge.techniques.base import Technique

if TYPE_CHECKING:
    from backends.oneshot.stream import Streamed

PACK_QUANTIZED, WITHOUT_ZEROS = "pack-quantized", "without-zeros"  # as `backends.oneshot.forms` names them


def packing(found: Streamed) -> dict[str, Any] | None:
    """What was packed, and how; None where weights are plain numbers."""
    zeros_left_out = found.form == WITHOUT_ZEROS
    packed = [layer for layer in found.layers if zeros_left_out or layer.scheme]
    if not packed:
        return None
    return {
        "layers": len(packed),
        "scheme": packed[0].scheme.model_dump() if packed[0].scheme else None,
        "bytes_before": sum(layer.bytes_before for layer in packed),
        "bytes_after": sum(layer.bytes_after for layer in packed),
    }


def loading(found: Streamed) -> str:
    """How the folder is loaded."""
    if found.form == WITHOUT_ZEROS:
        return f"advisor unpack {found.folder} --out FOLDER makes a model folder of it"
    library = " with the library compressed-tensors" if packing(found) else ""
    return f"transformers' AutoModelForCausalLM.from_pretrained({str(found.folder)!r}){library}"


def warnings(technique: Technique, found: Streamed) -> Iterator[str]:
    """What the calibration data did not tell, and what the folder is not."""
    layers = found.layers
    if hasattr(technique, "embedding_bits"):
        yield from _of_rounding(technique, found)
    damping: float = getattr(technique, "damping", float("inf"))
    for layer in layers:
        if layer.unread:
            which = f"{layer.unread} of {layer.matrices} matrices read no token, or zeros alone"
            yield f"{layer.path}: {which}, and went by their size."
        elif hasattr(technique, "damping") and layer.fewest_tokens < layer.inputs:
            yield f"{layer.path}: a matrix read {layer.fewest_tokens:,} tokens, fewer than its {layer.inputs:,} inputs."
        if layer.damping > damping:
            yield f"{layer.path}: its Hessian took a damping of {layer.damping:g} instead of {damping:g}."


def _of_rounding(technique: Technique, found: Streamed) -> Iterator[str]:
    layers = found.layers
    ends = "Embeddings and head stay as they are: embedding_bits and accuracy_level are not used."
    if packing(found) is None:
        why = f": {found.not_packed}" if found.not_packed else ""
        yield f"Weights lie on their grids as floats{why}, so the folder is as large as before. {ends}"
    else:
        yield f"{ends} `advisor run` takes plain weights: `advisor unpack` writes them."
        left = [layer for layer in layers if layer.left]
        for why in dict.fromkeys(layer.left for layer in left):
            of_these = [layer.path for layer in left if layer.left == why]
            more = f" (and {len(of_these) - 1} more)" if len(of_these) > 1 else ""
            yield f"Rounded, and left in floats: {of_these[0]}{more} {why}."
        if getattr(technique, "bits", 4) == 3:
            yield "Codes of 3 bits are stored in 4, which readers of the format take."
        if found.form == PACK_QUANTIZED and hasattr(technique, "grid"):
            scaled = sum(layer.scaled for layer in layers)
            yield f"{scaled} of {len(layers)} layers were scaled by channel: those behind a norm that takes it."
    size: int = getattr(technique, "group_size", 0)
    if narrow := sum(layer.inputs < size for layer in layers):
        yield f"{narrow} of {len(layers)} layers are narrower than a group of {size}: a row has one scale there."

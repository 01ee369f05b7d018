"""The shape of the requests: a table taken at one, as it is at another; what a model or this machine cannot take."""

from __future__ import annotations

import math

import numpy as np

from advisor.units import bytes_text
from knowledge.layers import LayerTable, ModelInfo
from knowledge.values import InputError, Workload

MOST_THREADS = 1024


def check_length(seq_len: int | None, info: ModelInfo) -> None:
    """Raise InputError for sequences that are longer than the model reads."""
    if seq_len and 0 < info.max_length < seq_len:
        problem = f"{info.name} reads at most {info.max_length} tokens or steps"
        raise InputError("seq-len", seq_len, problem, f"ask for {info.max_length} or fewer")


def check_measurable(workload: Workload, layers: LayerTable, sample: tuple[int, ...]) -> None:
    """Raise InputError for a workload that cannot be measured here.

    `sample` is the shape of the model's first input without the batch: images are measured at the size they have.
    """
    check_length(workload.seq_len, layers.info)
    if workload.image_size and len(sample) == 3 and workload.image_size != sample:
        wanted, there = ("×".join(map(str, size)) for size in (workload.image_size, sample))
        raise InputError("image-size", wanted, f"the model and its data have {there}", "leave it out")
    if workload.threads > MOST_THREADS:
        raise InputError("threads", workload.threads, "no process gets that many", f"ask for {MOST_THREADS} or fewer")
    _check_memory(workload.batch, layers, sample)


def _check_memory(batch: int, layers: LayerTable, sample: tuple[int, ...]) -> None:
    """Raise InputError where a batch, or what one layer makes of it, is larger than the memory that is free."""
    import psutil

    rows = np.isin(layers.kind, ("linear", "conv"))
    made = float((layers.positions[rows] * layers.outputs[rows]).max(initial=0))
    needed, free = 4 * batch * max(made, math.prod(sample)), psutil.virtual_memory().available
    if needed > free:
        problem = f"one layer's results take {bytes_text(needed)}, and {bytes_text(free)} of memory are free"
        raise InputError("batch", batch, problem, f"ask for {max(1, int(batch * free / needed) // 4)} or fewer")


def at_workload(layers: LayerTable, workload: Workload) -> LayerTable:
    """The table with its positions for the workload's sequence length or image size, where it asks for one.

    Layers used once per sample (a classifier behind pooling) stay; the rest is used in proportion to tokens or pixels.
    A sequence ends where the model's reach does. Raises InputError for another image size where positions are learned.
    """
    info = layers.info
    wanted = min(workload.seq_len or info.seq_len, info.max_length or 10**9)
    if info.seq_len and wanted != info.seq_len:
        return _scaled(layers, wanted / info.seq_len).with_info(seq_len=wanted)
    if workload.image_size and any(info.image_size) and tuple(workload.image_size) != info.image_size:
        return _other_image(layers, workload.image_size)
    return layers


def _other_image(layers: LayerTable, size: tuple[int, int, int]) -> LayerTable:
    info, wanted = layers.info, "×".join(map(str, size))
    if size[0] != info.image_size[0]:
        raise InputError(
            "image-size", wanted, f"the model reads {info.image_size[0]} channels", "keep the number of channels"
        )
    if info.family != "cnn":
        raise InputError("image-size", wanted, f"the model's positions are made for {info.image_size}", "leave it out")
    area = size[1] * size[2] / (info.image_size[1] * info.image_size[2])
    return _scaled(layers, area).with_info(image_size=tuple(size))


def _scaled(layers: LayerTable, factor: float) -> LayerTable:
    repeated = (layers.positions > 1) | np.isin(layers.kind, ("experts", "lstm"))
    return layers.change(repeated, positions=layers.positions[repeated] * factor)

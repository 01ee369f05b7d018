"""A table taken at one sample shape, as it is at another."""

from __future__ import annotations

import numpy as np

from knowledge.layers import LayerTable
from knowledge.values import InputError, Workload


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

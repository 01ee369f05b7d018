"""Moving outliers from activations into weights before quantization. arXiv:2211.10438 (SmoothQuant).

x · W = (x / s) · (s · W) for any positive s per input channel. With s between the channel's activation and weight
ranges the activations of all channels span one range, and one 8-bit scale serves them. The division costs nothing where
it folds into the layer norm (or RMS norm weight) before; elsewhere it is one multiplication on the branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from backends.onnx.dense import Dense
from backends.onnx.divide import divide_input, foldable
from backends.onnx.observe import Channels, observe, per_channel
from backends.onnx.session import Batch

SMALLEST = 1e-5
GAIN, GAIN_OF_A_MULTIPLICATION = 1.0, 1.5  # factors of expected noise


def factors(activations: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """s per input channel from max |x| and max |w| of that channel; 1 where the channel is silent.

    >>> factors(np.array([4.0, 1.0]), np.array([1.0, 1.0]), 0.5).tolist()
    [2.0, 1.0]
    """
    x, w = np.maximum(activations, SMALLEST), np.maximum(weights, SMALLEST)
    s = x**strength / w ** (1 - strength)
    return np.where(activations > SMALLEST, s, 1.0).astype(np.float32)


def noise(weight: np.ndarray, channels: Channels, s: np.ndarray) -> float:
    """Expected square of what rounding adds to one position's outputs, after scaling by s; in arbitrary units.

    Activations round to steps of their tensor's range / 255, weights to steps of their column's range / 127.
    weight: [inputs, outputs].
    """
    scaled = weight * s[:, None]
    activation_step = (channels.largest / s).max() / 255
    weight_steps = np.abs(scaled).max(axis=0) / 127
    energy = (channels.mean_square / s**2).sum()
    return float(activation_step**2 * np.square(scaled).sum() + np.square(weight_steps).sum() * energy)


def smooth(model: ir.Model, layers: Sequence[Dense], strength: float, batches: Sequence[Batch], threads: int) -> None:
    """Rescale the inputs of the layers, in place; layers that share an input share its factors.

    An input stays as it is where that would not lower the expected rounding noise (or lower it too little to pay for a
    multiplication), and where a layer's weights are read by something else too.
    """
    groups: dict[ir.Value, list[Dense]] = {}
    for layer in layers:
        groups.setdefault(layer.x, []).append(layer)
    groups = {x: group for x, group in groups.items() if all(len(layer.stored.uses()) == 1 for layer in group)}
    seen = observe(model, list(groups), batches, per_channel, threads)
    for x, group in groups.items():
        weight = np.concatenate([layer.weight for layer in group], axis=1)
        s = factors(seen[x].largest, np.abs(weight).max(axis=1), strength)
        gain = noise(weight, seen[x], np.ones_like(s)) / max(noise(weight, seen[x], s), SMALLEST**2)
        if gain < (GAIN if foldable(x, group) else GAIN_OF_A_MULTIPLICATION):
            continue
        for layer in group:
            _scale_rows(layer, s)
        divide_input(x, group, s)


def _scale_rows(layer: Dense, s: np.ndarray) -> None:
    scaled = np.ascontiguousarray((layer.weight * s[:, None]).T if layer.turned else layer.weight * s[:, None])
    layer.stored.const_value = ir.tensor(scaled, name=layer.name)

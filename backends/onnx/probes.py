"""Small generated graphs that say what one kind of work costs: chains of one operator, and whole blocks.

Each probe carries how much of every kind of work one call of it does; `backends.calibrate` finds the prices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
from onnx import TensorProto

from backends.onnx.chain import INPUT_SCALE, Chain, Form, Probe
from backends.onnx.dense import symmetric

BLOCK_WEIGHT = 2.0  # against a chain of one operator
PASS = 8.0  # bytes of a number read and written
SOFTMAX = 0.55  # of a pass of LayerNorm or GELU
TRANSPOSE, BIAS = 1.8, 1.2  # passes of a sum


# -- products ----------------------------------------------------------------------------------------


def products(group: str, rows: int, width: int, count: int, source: str = "cache") -> Probe:
    """Products of `rows` positions with square float weights; `source` is where those are read from."""
    chain = Chain((1, rows, width))
    for _ in range(count):
        chain.dense(width, width, "float", bias=False)
    work = {"start": count, "flop": 2.0 * rows * width**2 * count, source: 4.0 * width**2 * count}
    return chain.probe(group, f"{count} products {rows} × {width} × {width}", work)


def half_products(rows: int, width: int, count: int) -> Probe:
    """The same in fp16, from and to float."""
    chain = Chain((1, rows, width))
    chain.then("Cast", to=TensorProto.FLOAT16)
    for _ in range(count):
        chain.then("MatMul", chain.constant(chain.weights(width, width).astype(np.float16)))
    chain.then("Cast", to=TensorProto.FLOAT)
    return chain.probe("half", f"{count} fp16 products {rows} × {width} × {width}", {"count": count})


def integer_products(rows: int, width: int, count: int, form: Form) -> Probe:
    """The same in INT8."""
    chain = Chain((1, rows, width))
    for _ in range(count):
        chain.dense(width, width, form, bias=False)
    work = {
        "integer start": count,
        "integer flop": 2.0 * rows * width**2 * count,
        "integer cache": 1.0 * width**2 * count,
        "quantize": 4.0 * 2 * rows * width * count,
    }
    return chain.probe("integer", f"{count} {form} INT8 products {rows} × {width} × {width}", work)


# -- convolutions ------------------------------------------------------------------------------------


def convolutions(
    channels: int, side: int, kernel: int, count: int, *, depthwise: bool = False, group: str = ""
) -> Probe:
    """Float convolutions with a rectifier behind each."""
    chain = Chain((1, channels, side, side))
    fan_in = 1 if depthwise else channels
    for _ in range(count):
        weight = chain.constant(chain.weights(channels, fan_in, kernel, kernel))
        bias = chain.constant(np.zeros(channels, np.float32))
        chain.then("Conv", weight, bias, pads=[kernel // 2] * 4, group=channels // fan_in)
        chain.then("Relu")
    numbers = channels * fan_in * kernel**2 * count
    flop = "depthwise flop" if depthwise else "flop"
    # a convolution takes longer to start than a product, by about an operator without weights
    work = {"start": count, "light": count, flop: 2.0 * numbers * side**2, "cache": 4.0 * numbers}
    form = "depthwise convolutions" if depthwise else "convolutions"
    name = f"{count} {form} of {channels} channels {kernel} × {kernel} on {side} × {side}"
    return chain.probe(group or ("depthwise" if depthwise else "float"), name, work)


def integer_convolutions(channels: int, side: int, kernel: int, count: int, *, depthwise: bool = False) -> Probe:
    """The same in INT8 with fixed ranges."""
    chain = Chain((1, channels, side, side))
    fan_in = 1 if depthwise else channels
    chain.end = chain.rounded(chain.end, zero=0)
    for _ in range(count):
        weight = chain.weights(channels, fan_in, kernel, kernel)
        scales = INPUT_SCALE * symmetric(weight, axis=0)[1]
        bias = (chain.constant(np.zeros(channels, np.int32)), chain.constant(scales))
        stored_bias = chain.add("DequantizeLinear", *bias, axis=0)[0]
        group, pads = channels // fan_in, [kernel // 2] * 4
        chain.then("Conv", chain.stored(weight, axis=0), stored_bias, pads=pads, group=group)
        chain.then("Relu")
        chain.end = chain.rounded(chain.end, zero=0)  # which the rectifier becomes part of
    numbers = channels * fan_in * kernel**2 * count
    flop, start = ("integer depthwise flop", "integer start") if depthwise else ("integer conv flop", "start")
    windows = kernel**2 * side**2 * count if kernel > 1 else 0
    work = {start: count, "light": 4 + (0 if depthwise else count), flop: 2.0 * numbers * side**2}
    work |= {"integer cache": numbers, "window": windows, "quantize": 4.0 * channels * side**2 * count}
    form = "depthwise INT8 convolutions" if depthwise else "INT8 convolutions"
    name = f"{count} {form} of {channels} channels {kernel} × {kernel} on {side} × {side}"
    return chain.probe("integer depthwise" if depthwise else "integer convolution", name, work)


# -- what runs around them, and step by step ---------------------------------------------------------


def elementwise(shape: tuple[int, ...], count: int) -> Probe:
    """Sums and products of two tensors in turn."""
    chain = Chain(shape)
    for i in range(count):
        chain.then("Add" if i % 2 else "Mul", "x")
    work = {"light": count, "plain": PASS * float(np.prod(shape)) * count}
    return chain.probe("float", f"{count} elementwise operators on {_text(shape)}", work)


def functions(shape: tuple[int, ...], count: int) -> Probe:
    """LayerNorm, GELU and softmax in turn."""
    chain = Chain(shape)
    for _ in range(count):
        chain.norm(shape[-1])
        chain.then("Gelu")
        chain.then("Softmax")
    work = {"light": 3.5 * count, "function": PASS * (2 + SOFTMAX) * float(np.prod(shape)) * count}
    return chain.probe("float", f"{count} norms, GELUs and softmaxes on {_text(shape)}", work)


def recurrent(hidden: int, steps: int) -> Probe:
    """One LSTM layer over a sequence."""
    chain = Chain((steps, 1, hidden))
    parts = (chain.weights(1, 4 * hidden, hidden), chain.weights(1, 4 * hidden, hidden))
    bias = np.zeros((1, 8 * hidden), np.float32)
    chain.then("LSTM", *(chain.constant(p) for p in (*parts, bias)), hidden_size=hidden)
    numbers = 4 * hidden**2
    work = {"start": 1, "step": steps, "flop": 2.0 * 2 * numbers * steps, "cache": 4.0 * numbers}
    work["reread"] = 4.0 * numbers * steps  # the state's weights, at every step
    return chain.probe("recurrent", f"an LSTM of {hidden} units over {steps} steps", work)


def blocks(rows: int, width: int, heads: int, count: int, form: Form) -> Probe:
    """Whole transformer blocks: in a model, operators find the caches as others left them."""
    chain, wide = Chain((1, rows, width)), 4 * width
    split = [chain.constant(np.array(s)) for s in ((0, 0, heads, width // heads), (0, 0, width))]
    scale = chain.constant(np.float32((heads / width) ** 0.5))
    for _ in range(count):
        block_input = chain.end
        chain.norm(width)
        normed, projected = chain.end, []
        for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            chain.end = normed
            chain.dense(width, width, form)
            chain.then("Reshape", split[0])
            chain.then("Transpose", perm=order)
            projected.append(chain.end)
        chain.end = projected[0]
        chain.then("MatMul", projected[1])
        chain.then("Mul", scale)  # becomes part of the product
        chain.then("Softmax")
        chain.then("MatMul", projected[2])
        chain.then("Transpose", perm=[0, 2, 1, 3])
        chain.then("Reshape", split[1])
        chain.dense(width, width, form)
        chain.then("Add", block_input)
        middle = chain.end
        chain.norm(width)
        chain.dense(width, wide, form)
        chain.then("Gelu")
        chain.dense(wide, width, form)
        chain.then("Add", middle)
    weights, hidden, scores = 12.0 * width**2, float(rows * width), float(heads * rows**2)
    plain, function = (4 * TRANSPOSE + 2) * hidden, (2 + 4) * hidden + SOFTMAX * scores
    work = {"light": 15.0, "start": 2.0, "flop": 4.0 * scores * width / heads}
    if form == "float":
        plain, function = plain + 5 * BIAS * hidden, function + 4 * 0.35 * hidden  # biases; one goes with the GELU
        work["light"] += 5
        work["start"] += 6
        work["flop"] += 2 * weights * rows
        work["cache"] = 4 * weights
    else:
        work |= {"integer start": 6, "integer flop": 2 * weights * rows, "integer cache": weights}
        work["quantize"] = 4 * 16 * hidden  # three projections share an input
    work |= {"plain": PASS * plain, "function": PASS * function}
    name = f"{count} {form} transformer blocks of {width} columns on {rows} rows"
    group = "float" if form == "float" else "integer"
    return chain.probe(group, name, {kind: units * count for kind, units in work.items()}, weight=BLOCK_WEIGHT)


def _text(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


BLOCKS = ((16, 64, 4, 4), (128, 64, 2, 3), (128, 192, 6, 1), (128, 256, 8, 1))


def probes(largest_megabytes: int) -> Iterator[Probe]:
    """Every probe of a calibration. The last ones read weights from ever larger sets, up to `largest_megabytes`."""
    for rows, width, count in ((1, 256, 8), (1, 384, 6), (16, 64, 4), (16, 64, 16), (64, 128, 8), (128, 64, 8)):
        yield products("float", rows, width, count)
    for rows, width, count in ((128, 192, 8), (128, 384, 4), (128, 512, 2)):
        yield products("float", rows, width, count)
    for channels, side, kernel, count in ((16, 8, 1, 8), (32, 8, 3, 8), (64, 16, 1, 8), (64, 16, 3, 4), (64, 28, 3, 2)):
        yield convolutions(channels, side, kernel, count)
        yield integer_convolutions(channels, side, kernel, count)
    for channels, side, count in ((32, 8, 8), (64, 16, 8), (128, 14, 8)):
        yield convolutions(channels, side, 3, count, depthwise=True)
        yield integer_convolutions(channels, side, 3, count, depthwise=True)
    for rows, width, count in ((1, 256, 8), (1, 512, 4), (16, 64, 16), (128, 64, 8), (128, 192, 8), (128, 384, 4)):
        yield integer_products(rows, width, count, "dynamic")
        yield integer_products(rows, width, count, "static")
    for rows, width, heads, count in BLOCKS:
        for form in get_args(Form):
            yield blocks(rows, width, heads, count, form)
    yield elementwise((1, 1, 16), 8)
    for shape, count in (((1, 1, 16), 6), ((1, 128, 192), 3), ((4, 128, 128), 3)):
        yield functions(shape, count)
    for hidden, steps in ((64, 16), (128, 16), (192, 8), (256, 16)):
        yield recurrent(hidden, steps)
    yield half_products(128, 384, 4)
    count = 2
    while count <= largest_megabytes:
        yield products("reading", 8, 512, count, "memory")  # a megabyte each
        count *= 2
    yield products("decoding", 1, 1024, largest_megabytes // 4, "memory")
    for channels in (32, 33, 36, 40, 44, 48):
        yield convolutions(channels, 16, 3, 2, group="channels")

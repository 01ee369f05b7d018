"""Latency of a model on a target: what its layers compute and read, and what runs around them, at the target's rates.

    latency = request + Σ layers (start + arithmetic + reading the weights) + operators around them + attention

On a CPU a layer's arithmetic and its reading of weights add up; a GPU does both at once, so the longer one counts
(the roofline of Williams, Waterman and Patterson, doi:10.1145/1498765.1498785). Rates that a target does not give
follow from those that every target gives, by the fallbacks below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from advisor.operators import Rows, operators_around
from knowledge.layers import BoolColumn, LayerTable
from knowledge.schema import Figure, Target
from knowledge.values import Workload

# where a target gives no figure of its own; measured on x86 cores with AVX-512
CACHE_BYTES = 4e6  # weights of a smaller model stay in the processor's cache between requests,
CACHE_SPEED = 4.0  # which is this much faster than memory
DEPTHWISE_FACTOR = 0.4  # of the rate of dense layers: each number is used nine times only
LIGHT_OVERHEAD = 0.25  # of an operator without weights, against one with
STEP_OVERHEAD = 1.0  # of a recurrent layer's time step, against a layer
# operations for a weight that is unpacked from its group: 4-bit decoding was 2.3 times as fast as fp32, not 6 times
UNPACKING = 9.0
EXPERT_PASSES = 2.0  # over the weights that an exported mixture of experts copies for every token

BYTES_PER_PASS = 8  # a number in 32 bits, read and written
BYTES_PER_NUMBER = 4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one request, and what they are spent on."""

    total: float
    overhead: float  # starting operators
    memory: float  # in layers that wait for memory


class Rates:
    """A target's figures as milliseconds for each unit of work, at the workload's threads."""

    def __init__(self, target: Target, workload: Workload) -> None:
        share = min(1.0, workload.threads / target.threads)
        gbps = target.bandwidth_gbps.value

        def figure(given: Figure | None, fallback: float) -> float:
            return given.value if given is not None else fallback

        def per_byte(given: Figure | None, fallback: float) -> float:
            return 1 / (figure(given, fallback) * share * 1e6)

        start = target.node_overhead_us.value
        fused = target.provider == "TensorrtExecutionProvider"  # which merges operators without weights into layers
        cache_gbps = figure(target.cache_gbps, CACHE_SPEED * gbps)
        elementwise = figure(target.elementwise_gbps, gbps)
        self.flop = 1 / (target.gflops_fp32.value * target.efficiency.value * share * 1e6)
        self.memory = per_byte(target.bandwidth_gbps, gbps)
        self.cache = per_byte(target.cache_gbps, cache_gbps)
        self.integer_cache = per_byte(target.int8_cache_gbps, cache_gbps)
        self.cache_bytes = figure(target.cache_bytes, CACHE_BYTES)
        self.plain = per_byte(target.elementwise_gbps, elementwise)
        self.function = per_byte(target.function_gbps, elementwise)
        self.quantize = per_byte(target.quantize_gbps, elementwise)
        self.window = figure(target.int8_window_ns, 0.0) / 1e6 / share
        self.request = figure(target.request_overhead_us, 0.0) / 1e3
        self.start = start / 1e3
        self.integer_start = figure(target.int8_overhead_us, start) / 1e3
        self.light = figure(target.light_overhead_us, 0.0 if fused else LIGHT_OVERHEAD * start) / 1e3
        self.reread = per_byte(target.recurrent_gbps, cache_gbps)
        self.step = figure(target.step_overhead_us, STEP_OVERHEAD * start) / 1e3
        self.depthwise = figure(target.depthwise_factor, DEPTHWISE_FACTOR)
        self.int8, self.int8_conv = target.int8_factor.value, target.int8_conv_factor.value
        self.int8_depthwise = figure(target.int8_depthwise_factor, min(1.0, target.int8_conv_factor.value))
        self.fp16 = target.fp16_factor.value if "fp16" in target.accelerates else None
        self.overlap = target.device == "gpu"

    def reading(self, between: Floats | float, integer: BoolColumn, recurrent: BoolColumn) -> Floats:
        """Milliseconds to read one byte of weights, where `between` bytes are read before it is its turn again."""
        missed = np.clip(between / self.cache_bytes - 1, 0.0, 1.0)
        cache = np.where(integer, self.integer_cache, np.where(recurrent, self.reread, self.cache))
        return np.asarray(missed * self.memory + (1 - missed) * cache)


class Roofline:
    """Latency on a target at a workload."""

    def __init__(self, target: Target, workload: Workload) -> None:
        self.target, self.workload = target, workload
        self.rates = Rates(target, workload)
        self.block = target.channel_block.value if target.channel_block else 1.0
        self.patterns = [p for p in target.accelerates if p in ("2:4", "unstructured")]
        self._rows: dict[tuple[int, ...], tuple[Rows, tuple[object, ...]]] = {}

    def latency(self, layers: LayerTable) -> Latency:
        """Latency of a model as it is deployed."""
        rates, rows, batch = self.rates, self._rows_of(layers), self.workload.batch
        integer = (layers.bits == 8) & (layers.group_size <= 0)  # groups of weights become floats before the product
        half = (layers.bits == 16) & (rates.fp16 is None)
        uses = self._positions(layers) * batch
        arithmetic = 2 * self._products(layers, rows) * uses * rates.flop / self._factor(layers, rows, integer)
        memory = self._memory(layers, rows, uses, integer)
        if not rates.overlap:
            arithmetic = arithmetic + UNPACKING * rates.flop * layers.weights * ((layers.group_size > 0) & rows.linear)
        work = np.maximum(arithmetic, memory) if rates.overlap else arithmetic + memory
        starts = self._starts(layers, rows, uses, integer)
        quantizing = self._quantizing(layers, rows, uses, integer)
        scores, attention = self._attention(layers, rows, uses)
        outputs = layers.outputs * uses * np.where((layers.bits == 16) & ~half, 0.5, 1.0)
        around = operators_around(layers, rows, outputs, self._tokens(layers), scores, integer, half)
        overhead = rates.request + starts + around.operators * rates.light
        between = BYTES_PER_PASS * (around.plain * rates.plain + around.function * rates.function)
        total = overhead + float(work.sum()) + quantizing + attention + between
        return Latency(total, overhead, float(work[memory > arithmetic].sum()))

    def _rows_of(self, layers: LayerTable) -> Rows:
        """Most chains leave these columns as they are: then the same arrays stand in both tables."""
        columns = layers.kind, layers.role, layers.groups, layers.inputs
        key = tuple(map(id, columns))
        if key not in self._rows:
            self._rows[key] = Rows(layers), columns  # kept beside it, so that no other array takes an id
        return self._rows[key][0]

    def _tokens(self, layers: LayerTable) -> float:
        return float((self.workload.seq_len or layers.info.seq_len) * self.workload.batch)

    def _positions(self, layers: LayerTable) -> Floats:
        """Times each weight is used at the workload's sequence length."""
        positions = np.asarray(layers.positions, dtype=np.float64)
        wanted, had = self.workload.seq_len, layers.info.seq_len
        if wanted and had and wanted != had:
            return np.where(positions > 1, positions * wanted / had, positions)
        return positions

    def _products(self, layers: LayerTable, rows: Rows) -> Floats:
        """Products for one use of each layer. Convolutions compute widths in whole blocks of channels."""
        weights = layers.weights * rows.multiplies * (1.0 + rows.complex)
        if self.block > 1:
            fan_in = layers.inputs // layers.groups
            outputs = np.ceil(layers.outputs / self.block) * self.block
            inputs = np.where(fan_in < self.block / 2, fan_in, np.ceil(fan_in / self.block) * self.block)
            weights = np.where(rows.conv, outputs * inputs * layers.kernel, weights)
        if self.patterns:  # kernels of their own skip the zeros of these patterns
            weights = weights * np.where(np.isin(layers.pattern, self.patterns), layers.density, 1.0)
        return np.asarray(weights, dtype=np.float64)

    def _factor(self, layers: LayerTable, rows: Rows, integer: BoolColumn) -> Floats:
        """Arithmetic rate against dense layers in fp32, per row."""
        rates = self.rates
        int8 = np.where(rows.depthwise, rates.int8_depthwise, np.where(rows.conv, rates.int8_conv, rates.int8))
        factor = np.where(integer, int8, np.where(layers.bits == 16, rates.fp16 or 1.0, 1.0))
        return np.asarray(factor * np.where(rows.depthwise, rates.depthwise, 1.0), dtype=np.float64)

    def _memory(self, layers: LayerTable, rows: Rows, uses: Floats, integer: BoolColumn) -> Floats:
        """Milliseconds of reading weights.

        Once in a request, but at every step of a recurrent layer; and an exported mixture of experts copies, for every
        token, the weights of the experts that it goes to.
        """
        bits = np.where((layers.bits == 16) & (self.rates.fp16 is None), 32, layers.bits)
        read: Floats = layers.weights * bits * rows.multiplies / 8
        times = np.where(rows.recurrent, uses / self.workload.batch, 1.0)
        between = np.where(rows.recurrent, read, read.sum())
        if rows.any_experts:
            times = np.where(rows.experts, EXPERT_PASSES * uses, times)
            between = np.where(rows.experts, read * uses, read[~rows.experts].sum())
        return np.asarray(read * times * self.rates.reading(between, integer, rows.recurrent))

    def _starts(self, layers: LayerTable, rows: Rows, uses: Floats, integer: BoolColumn) -> float:
        """Milliseconds of starting weight-bearing operators, a factored layer's two among them."""
        rates = self.rates
        converts = integer & (~rows.conv | rows.depthwise)
        start = np.where(converts, rates.integer_start, rates.start) * np.where(layers.rank > 0, 2, 1)
        start = start + rates.light * (rows.conv & ~converts)  # what a convolution takes longer to start than a product
        steps = rates.step * uses / self.workload.batch
        found = np.where(rows.recurrent, steps, start * rows.multiplies)
        return float(found.sum()) + 2 * rows.block_count * rates.start

    def _quantizing(self, layers: LayerTable, rows: Rows, uses: Floats, integer: BoolColumn) -> float:
        """Milliseconds of turning activations into integers and sums back into floats. Layers share their input's."""
        if not integer.any():
            return 0.0
        shared = rows.conv | rows.keys_and_values | (rows.up & rows.gated)
        numbers = (layers.outputs + np.where(shared, 0, layers.inputs)) * uses * (integer & ~rows.embedding)
        windows = layers.kernel * uses * (integer & rows.conv & (layers.kernel > 1))
        return BYTES_PER_NUMBER * float(numbers.sum()) * self.rates.quantize + float(windows.sum()) * self.rates.window

    def _attention(self, layers: LayerTable, rows: Rows, uses: Floats) -> tuple[float, float]:
        """Products of queries with keys, all heads, and milliseconds of computing and using them, in float."""
        if not layers.info.heads:
            return 0.0, 0.0
        width = np.where(rows.packed_queries, layers.outputs / 3, layers.outputs)
        squares = uses**2 / self.workload.batch * rows.queries
        speed = np.where(layers.bits == 16, self.rates.fp16 or 1.0, 1.0)
        return float(squares.sum()) * layers.info.heads, float((4 * squares * width / speed).sum()) * self.rates.flop

"""What a chain is expected to give on a target: size by `effect`, latency by a roofline, quality from claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from advisor.quality import QualityModel, Spread
from advisor.request import TASKS
from knowledge.deploy import deployed
from knowledge.evidence import Evidence
from knowledge.layers import LayerTable
from knowledge.load import Knowledge
from knowledge.schema import Target
from knowledge.techniques.base import Level, Technique
from knowledge.techniques.catalog import build
from knowledge.values import Estimate, Interval, Stage, Workload

GRAPH_BYTES_PER_QUANTIZER = 500  # of the nodes around an integer layer: 530 on digits-cnn
GRAPH_BYTES_PER_LAYER = 400  # of a stripped ONNX file: nodes, names, shapes; 270 to 520 on the embedded examples
MEMORY_BASE_BYTES = 45e6  # runtime and session, before any weight
RECURRENT_EFFICIENCY = 0.4  # time steps run one after another on thin products
CACHE_BYTES = 4e6  # weights of a smaller model stay in the processor's cache between requests,
CACHE_SPEED = 4.0  # which is this much faster than memory
LIGHT_OVERHEAD = 0.25  # of norms and embeddings, against a dense operator
# bytes moved for each output of a layer by the elementwise operators behind it: activations, norms, rotations
# (fitted to MiniLM and two decoders on one thread; a convolution's are fused into it)
PASS_BYTES = 24.0
CONV_PASS_BYTES = 8.0
SPEEDUP_MARGIN = {True: 0.25, False: 0.4}  # by whether the target's rates were measured
# what a large gain on paper may shrink to: ResNet-50 with 3.85 times fewer operations ran 2.19 times faster, 3.85^0.58
SPEEDUP_EXPONENT = 0.7
LATENCY_FACTOR = {True: 1.4, False: 2.0}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one request, and what they are spent on."""

    total: float
    overhead: float  # starting operators
    memory: float  # in layers that wait for memory


class Roofline:
    """Latency on a target at a workload: per layer the larger of arithmetic and memory time, plus operator overhead."""

    def __init__(self, target: Target, workload: Workload) -> None:
        self.target, self.workload = target, workload
        share = min(1.0, workload.threads / target.threads)
        self.flops_per_ms = target.gflops_fp32.value * target.efficiency.value * share * 1e6
        self.bytes_per_ms = target.bandwidth_gbps.value * share * 1e6
        self.overhead_ms = target.node_overhead_us.value / 1e3
        self.block = target.channel_block.value if target.channel_block else 1.0
        self.patterns = [p for p in target.accelerates if p in ("2:4", "unstructured")]

    def latency(self, layers: LayerTable) -> Latency:
        """Latency of a model as it is deployed."""
        kind, bits = layers.kind, self._computed_bits(layers)
        embedding, norm, conv = kind == "embedding", kind == "norm", kind == "conv"
        positions = self._positions(layers) * self.workload.batch
        weights = layers.weights
        flops = 2.0 * np.where(conv, self._blocked(layers), weights) * positions * self._density(layers)
        arithmetic = flops / (self.flops_per_ms * self._factor(kind, bits))
        read = np.where(embedding, 0.0, weights * bits / 8)
        memory = read / (self.bytes_per_ms * (CACHE_SPEED if read.sum() < CACHE_BYTES else 1.0))
        passes = np.where(conv, CONV_PASS_BYTES * bits / 32, PASS_BYTES) * np.where(
            norm, 0.0, positions * layers.outputs
        )
        starts = np.where(norm | embedding, LIGHT_OVERHEAD, 1.0) * np.where(layers.rank > 0, 2, 1)
        overhead = float(starts.sum()) * self.overhead_ms
        work = np.maximum(arithmetic, memory)
        between = float(passes.sum()) / self.bytes_per_ms
        total = float(work.sum()) + between + overhead + self._attention_ms(layers, positions)
        return Latency(total, overhead, float(work[memory > arithmetic].sum()))

    def _blocked(self, layers: LayerTable) -> Floats:
        """Weights of convolutions as their kernels count them: widths in whole blocks of channels."""
        if self.block <= 1:
            return layers.weights.astype(np.float64)
        fan_in = layers.inputs // layers.groups
        outputs = np.ceil(layers.outputs / self.block) * self.block
        inputs = np.where(fan_in < self.block / 2, fan_in, np.ceil(fan_in / self.block) * self.block)
        return np.asarray(outputs * inputs * layers.kernel, dtype=np.float64)

    def _positions(self, layers: LayerTable) -> Floats:
        """Times each weight is used at the workload's sequence length."""
        positions = np.asarray(layers.positions, dtype=np.float64)
        wanted, had = self.workload.seq_len, layers.info.seq_len
        if wanted and had and wanted != had:
            return np.where(positions > 1, positions * wanted / had, positions)
        return positions

    def _computed_bits(self, layers: LayerTable) -> NDArray[np.int64]:
        """Bits in which weights reach the arithmetic: fp16 becomes fp32 where the target computes in fp32 only."""
        if "fp16" in self.target.accelerates:
            return layers.bits
        return np.where(layers.bits == 16, 32, layers.bits)

    def _factor(self, kind: NDArray[np.object_], bits: NDArray[np.int64]) -> Floats:
        """Arithmetic rate against fp32, per row."""
        target = self.target
        int8 = np.where(kind == "conv", target.int8_conv_factor.value, target.int8_factor.value)
        factor = np.where(bits == 8, int8, np.where(bits == 16, target.fp16_factor.value, 1.0))
        return np.asarray(factor * np.where(kind == "lstm", RECURRENT_EFFICIENCY, 1.0), dtype=np.float64)

    def _density(self, layers: LayerTable) -> Floats | float:
        """Share of the products that are computed: all of them, but for zeros in a pattern with kernels of its own."""
        if not self.patterns:
            return 1.0
        return np.where(np.isin(layers.pattern, self.patterns), layers.density, 1.0)

    def _attention_ms(self, layers: LayerTable, positions: Floats) -> float:
        """Products of two activations: queries with keys and weights with values, in float whatever the weights are."""
        if not layers.info.heads:
            return 0.0
        fused = layers.role == "attention_qkv"
        queries = fused | (layers.role == "attention_q")
        width = np.where(fused, layers.outputs / 3, layers.outputs)
        squares = (positions / self.workload.batch) ** 2 * queries * self.workload.batch
        flops = float((4 * squares * width).sum())
        scores = float(squares.sum()) * layers.info.heads  # masked, scaled and normalized, an element at a time
        return flops / self.flops_per_ms + scores * PASS_BYTES / self.bytes_per_ms


@dataclass(frozen=True)
class Outlook:
    """A chain in numbers, before anything is rounded or worded."""

    layers: LayerTable  # as deployed
    bytes: float
    latency: Latency
    drop: Spread
    compression: float
    speedup: float

    @property
    def memory_bytes(self) -> float:
        """Peak of a fresh process, roughly: the runtime and the weights as it holds them."""
        return MEMORY_BASE_BYTES + 1.2 * self.bytes


class Predictor:
    """Outlooks for chains over one model, target and workload."""

    def __init__(
        self,
        layers: LayerTable,
        target: Target,
        workload: Workload,
        knowledge: Knowledge,
        task: str = "",
        model: str = "",  # as evidence names it
        evidence: Sequence[Evidence] = (),
    ) -> None:
        self.layers, self.target, self.workload = layers, target, workload
        kind, unit = TASKS.get(task or layers.info.task, ("accuracy", "pp"))
        self.quality = QualityModel(knowledge, layers.info, kind, unit, evidence, model, layers.parameters)
        self.roofline = Roofline(target, workload)
        self.measured = target.measured

    def on(self, target: Target) -> Predictor:
        """The same model and quality on another target."""
        other = copy(self)
        other.__dict__.pop("baseline", None)
        other.target, other.roofline, other.measured = target, Roofline(target, self.workload), target.measured
        return other

    @cached_property
    def baseline(self) -> Outlook:
        """The uncompressed model."""
        files = deployed(self.layers)
        return Outlook(files, file_bytes(files), self.roofline.latency(files), self.quality.chain(()), 1.0, 1.0)

    def outlook(self, techniques: Sequence[Technique], files: LayerTable) -> Outlook:
        """What `techniques` give, when `files` is the deployed table that they lead to."""
        size, latency, base = file_bytes(files), self.roofline.latency(files), self.baseline
        drop = self.quality.chain(techniques)
        return Outlook(files, size, latency, drop, base.bytes / size, base.latency.total / latency.total)

    def chain(self, techniques: Sequence[Technique]) -> Outlook:
        """What `techniques` give, from the uncompressed table on."""
        layers, files = self.layers, self.baseline.layers
        for technique in techniques:
            layers, files = after(technique, layers, files)
        return self.outlook(techniques, files)

    def speedups(self, outlook: Outlook) -> tuple[float, float, float]:
        """Low, middle and high speed-up."""
        speedup, margin = outlook.speedup, SPEEDUP_MARGIN[self.measured]
        if speedup == 1:
            return 1.0, 1.0, 1.0
        return min(speedup, speedup**SPEEDUP_EXPONENT) * (1 - margin / 2), speedup, speedup * (1 + margin)

    def estimate(self, outlook: Outlook) -> Estimate:
        """An outlook as intervals, each with what it rests on."""
        base, factor = self.baseline, LATENCY_FACTOR[self.measured]
        unknown = base.bytes - base.layers.stored_bytes  # the graph around the numbers is guessed
        size_basis = "the layer tables of both files, exact for uniform parameters, plus their graphs"
        rates = "measured" if self.measured else "estimated"
        roofline = f"roofline of {self.target.id} ({rates} rates) at this workload"
        return Estimate(
            size_bytes=_interval(
                outlook.bytes - unknown / 2, outlook.bytes, outlook.bytes + unknown, "bytes", size_basis
            ),
            compression=_around(
                outlook.compression, 0.02 if outlook.compression != 1 else 0.0, "×", "uncompressed file ÷ this one"
            ),
            speedup=_interval(*self.speedups(outlook), "×", f"{roofline}, both models"),
            latency_ms=_interval(
                outlook.latency.total / factor, outlook.latency.total, outlook.latency.total * factor, "ms", roofline
            ),
            quality_drop=self.quality.interval(outlook.drop),
        )


def estimate(
    layers: LayerTable,
    stages: Sequence[Stage],
    target: Target,
    workload: Workload,
    knowledge: Knowledge,
    model: str = "",
    evidence: Sequence[Evidence] = (),
) -> Estimate:
    """What `stages` are expected to give for the model `layers` on `target`: never a measurement.

    Raises InputError on an unknown technique or a parameter out of range.
    """
    predictor = Predictor(layers, target, workload, knowledge, model=model, evidence=evidence)
    return predictor.estimate(predictor.chain([build(stage) for stage in stages]))


def after(
    technique: Technique, layers: LayerTable, files: LayerTable, solved: LayerTable | None = None
) -> tuple[LayerTable, LayerTable]:
    """(the module's table, the file's) after a technique: what works on the file changes the file's table only.

    `solved` is the module's table where it is known already.
    """
    if technique.level is Level.GRAPH:
        return layers, technique.effect(files)
    changed = solved if solved is not None else technique.effect(layers)
    return (changed, deployed(changed)) if changed is not layers else (layers, files)


def file_bytes(layers: LayerTable) -> float:
    """Bytes on disk of a deployed table: its numbers and the graph around them."""
    quantized = int((layers.scale_bits > 0).sum())
    return float(layers.stored_bytes + GRAPH_BYTES_PER_LAYER * len(layers) + GRAPH_BYTES_PER_QUANTIZER * quantized)


def _interval(low: float, mid: float, high: float, unit: str, basis: str) -> Interval:
    low, mid, high = (_rounded(value) for value in (low, mid, high))
    return Interval(low=low, mid=mid, high=high, unit=unit, basis=basis)


def _around(mid: float, margin: float, unit: str, basis: str) -> Interval:
    return _interval(mid * (1 - margin), mid, mid * (1 + margin), unit, basis)


def _rounded(value: float) -> float:
    """Four significant digits: more would claim what an estimate does not know."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, 3 - math.floor(math.log10(abs(value))))

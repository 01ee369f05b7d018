"""What a chain is expected to give on a target: size by `effect`, latency by a roofline, quality from claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

from advisor.quality import QualityModel, Spread
from advisor.roofline import Latency, Roofline
from knowledge.deploy import deployed
from knowledge.evidence import Evidence
from knowledge.layers import LayerTable
from knowledge.load import Knowledge
from knowledge.schema import Target
from knowledge.tasks import TASKS
from knowledge.techniques.base import Level, Technique
from knowledge.techniques.catalog import build
from knowledge.values import Estimate, Interval, Stage, Workload

GRAPH_BYTES_PER_LAYER = 320  # of a stripped ONNX file: nodes, names, shapes; 270 to 520 on the embedded examples
MEMORY_BASE_BYTES = 45e6  # runtime and session, before any weight
# by whether the target's rates were measured: then 9 of 10 chains of `benchmarks.roofline` are within 11 %
SPEEDUP_MARGIN = {True: 0.25, False: 0.4}
# what a large gain on paper may shrink to: ResNet-50 with 3.85 times fewer operations ran 2.19 times faster, 3.85^0.58
SPEEDUP_EXPONENT = {True: 0.85, False: 0.7}
LATENCY_FACTOR = {True: 1.3, False: 2.0}


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
        size, latency, base = file_bytes(files, techniques), self.roofline.latency(files), self.baseline
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
        shrunk = min(speedup, speedup ** SPEEDUP_EXPONENT[self.measured])
        return shrunk * (1 - margin / 2), speedup, speedup * (1 + margin)

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


def file_bytes(layers: LayerTable, techniques: Sequence[Technique] = ()) -> float:
    """Bytes on disk of a deployed table: its numbers and the graph around them."""
    around = GRAPH_BYTES_PER_LAYER * len(layers)
    for technique in techniques:
        for kind, size in getattr(technique, "node_bytes", {}).items():
            quantized = (layers.kind == kind) & (layers.scale_bits > 0)
            around += size * int((quantized * (1 + (layers.rank > 0))).sum())  # a factored layer is two
    return float(layers.stored_bytes + around)


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

"""What carrying out a chain costs: the data it needs, training time and peak memory on this machine. Estimates."""

import os
from collections.abc import Sequence
from functools import cached_property

from backends.memory import total_memory
from knowledge.layers import LayerTable
from knowledge.techniques.base import Family, Level, Need, Technique
from knowledge.values import Interval, Value, Workload

# measured: MiniLM trains 16 samples of 64 tokens a second on two cores, which is 33 GFLOP/s a core
TRAINING_GFLOPS_PER_CORE = 33.0
BACKWARD = 2.0  # a backward pass computes the gradients of inputs and of weights
STATES = 4.0  # weights, gradients and the two moments of the optimizer, in fp32
FRAMEWORK_BYTES = 450e6  # torch and its libraries before any weight; a process without a model takes about that
EXPORT_COPIES = 3.0  # the module, the graph under construction and the file
ACTIVATIONS_KEPT = 6.0  # numbers kept for the backward pass for each output of a layer
TRAINING_BATCH = 32
SPREAD = 2.0  # up and down: other processors, other data loaders
SAMPLES = 1000

# strongest need first: what a chain asks for
DATA_WORDS = {
    Need.LABELED: "labeled training data",
    Need.UNLABELED: "training data; labels help where there are some",
    Need.CALIBRATION: "a few hundred representative inputs",
}


class Cost(Value):
    """What a chain needs to be carried out."""

    data: str
    training_seconds: Interval  # per thousand training samples
    peak_memory_bytes: Interval
    memory_bytes: int  # of this machine
    fits_memory: bool


class CostModel:
    """Costs of chains over one model at one workload."""

    def __init__(self, layers: LayerTable, workload: Workload) -> None:
        self.layers, self.workload = layers, workload

    def chain(self, techniques: Sequence[Technique]) -> Cost:
        """Data, training time per thousand samples, and the peak of the process that carries the chain out."""
        needs = {need for t in techniques for need in t.needs}
        data = next((words for need, words in DATA_WORDS.items() if need in needs), "none")
        peak = max((self._memory(t) for t in techniques), default=self._resting)
        memory = total_memory()
        return Cost(
            data=data,
            training_seconds=_interval(sum(self._seconds(t) for t in techniques), "s", self._basis),
            peak_memory_bytes=_interval(peak, "bytes", "weights, gradients, optimizer and activations in fp32"),
            memory_bytes=memory,
            fits_memory=peak <= memory,
        )

    @property
    def _basis(self) -> str:
        return f"{TRAINING_GFLOPS_PER_CORE:g} GFLOP/s on each of {cores()} cores, per {SAMPLES} samples"

    @cached_property
    def _weight_bytes(self) -> float:
        return 4.0 * self.layers.parameters

    @cached_property
    def _resting(self) -> float:
        return FRAMEWORK_BYTES + EXPORT_COPIES * self._weight_bytes

    @cached_property
    def _activation_bytes(self) -> float:
        outputs = float((self.layers.positions * self.layers.outputs).sum())
        return 4.0 * ACTIVATIONS_KEPT * TRAINING_BATCH * outputs

    def _memory(self, technique: Technique) -> float:
        if Need.TRAINING not in technique.needs:
            return self._resting
        teacher = self._weight_bytes if technique.family is Family.DISTILL else 0.0
        trained = STATES * self._weight_bytes + teacher + self._activation_bytes
        return max(self._resting, FRAMEWORK_BYTES + trained)

    def _seconds(self, technique: Technique) -> float:
        """Seconds to train on a thousand samples, all epochs; a student's teacher answers each of them too."""
        if Need.TRAINING not in technique.needs or technique.level is not Level.MODEL:
            return 0.0
        flops = 2.0 * self.layers.macs
        student = flops / float(getattr(technique, "compression", 1.0))
        teacher = flops if technique.family is Family.DISTILL else 0.0
        epochs = float(getattr(technique, "epochs", 1))
        total = SAMPLES * epochs * ((1 + BACKWARD) * student + teacher)
        return total / (TRAINING_GFLOPS_PER_CORE * 1e9 * cores())


def cores() -> int:
    return os.cpu_count() or 1


def _interval(mid: float, unit: str, basis: str) -> Interval:
    low, middle, high = (float(f"{value:.3g}") for value in (mid / SPREAD, mid, mid * SPREAD))
    return Interval(low=low, mid=middle, high=high, unit=unit, basis=basis)

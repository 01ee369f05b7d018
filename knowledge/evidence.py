"""Evidence: one chain of techniques carried out on one model, and what it really cost and gained.

What ships with the package was measured on the embedded models; the user's own runs add theirs. Estimates lean on both.
"""

from typing import Annotated, Literal

from pydantic import Field

from knowledge.layers import Family
from knowledge.tasks import Kind
from knowledge.values import Stage, Value, Workload


class Evidence(Value):
    """One measured chain. Figures of different metrics or protocols are never pooled."""

    id: str  # hash of everything that makes it this measurement: model, stages, protocol
    model: str  # as it was named: zoo:digits-cnn
    model_key: str  # fingerprint of its weights; the same model under another name has the same
    arch: Family
    subfamily: str = ""
    parameters: Annotated[int, Field(gt=0)]
    blocks: int = 0  # repeated blocks of the uncompressed model
    task: str
    metric: Kind
    unit: Literal["pp", "%"]  # of `drop`
    protocol: str  # what was judged on: split, samples, sequence length
    stages: tuple[Stage, ...]  # every parameter spelled out
    baseline_quality: float
    quality: float
    drop: float  # loss in `unit`; negative: a gain
    baseline_size_bytes: Annotated[int, Field(gt=0)]
    size_bytes: Annotated[int, Field(gt=0)]
    workload: Workload
    baseline_latency_ms: Annotated[float, Field(gt=0)]
    latency_ms: Annotated[float, Field(gt=0)]
    speedup: Annotated[float, Field(gt=0)]  # paired ratio, not the quotient of the medians
    machine: str  # processor and runtime that timed it
    command: str  # reproduces it

    @property
    def compression(self) -> float:
        """Uncompressed bytes ÷ compressed bytes."""
        return self.baseline_size_bytes / self.size_bytes

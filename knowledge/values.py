"""The values that all layers speak in. An estimate and a measurement are different types and never mix unnamed."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field


class Value(BaseModel):
    """A frozen value that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InputError(Exception):
    """Something the user gave is wrong: one line with field, value and remedy (exit 2)."""

    exit_code = 2

    def __init__(self, field: str, value: object, problem: str, remedy: str = "") -> None:
        self.field, self.value, self.problem, self.remedy = field, value, problem, remedy
        line = f"{field}: {value!s}: {problem}" if str(value) else f"{field}: {problem}"
        super().__init__(" ".join(f"{line}; {remedy}".split()) if remedy else " ".join(line.split()))


class RunFailed(Exception):
    """A run could not go on: one line with what is kept and how to continue (exit 3)."""

    exit_code = 3


class Diverged(RunFailed):
    """Training left the finite numbers: this stage's parameters are at fault, others may work."""


class DiskFull(RunFailed):
    """There is no room to write a result; what was finished is kept."""


class Refusal(Value):
    """A no, as a value: which technique, by which rule, what was seen, what was needed, what would help."""

    technique: str
    rule: str
    observed: str
    required: str
    remedy: str = ""
    source: str = ""

    @property
    def text(self) -> str:
        return f"{self.technique}: {self.observed}; needs {self.required}"


class Interval(Value):
    """An estimated figure: where it lies, in which unit, and what it rests on."""

    low: float
    mid: float
    high: float
    unit: str
    basis: str


class Estimate(Value):
    """What a chain is expected to give. Never a measurement."""

    size_bytes: Interval
    compression: Interval
    speedup: Interval
    latency_ms: Interval
    quality_drop: Interval


class Limits(StrEnum):
    """Names of the limits a budget can set, as `misses` reports them."""

    QUALITY = "quality"
    SIZE = "size"
    LATENCY = "latency"
    MEMORY = "memory"
    SPEEDUP = "speedup"


class Drop(Value):
    """Allowed loss: points of accuracy (`pp`) or relative percent (`%`)."""

    amount: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    unit: Literal["pp", "%"]

    def __str__(self) -> str:
        return f"{self.amount:g}{'' if self.unit == '%' else ' '}{self.unit}"


class Budget(Value):
    """What may be spent and what must be met."""

    max_drop: Drop
    max_size_bytes: Annotated[int, Field(gt=0)] | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    max_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    min_speedup: Annotated[float, Field(gt=0)] | None = None


class Workload(Value):
    """The requests that the deployed model answers: every latency is measured at this shape."""

    batch: Annotated[int, Field(ge=1)] = 1
    seq_len: Annotated[int, Field(ge=1)] | None = None
    image_size: tuple[int, int, int] | None = None  # channels, height, width
    threads: Annotated[int, Field(ge=1)] = 2


class Stage(Value):
    """One technique with every parameter fixed."""

    technique: str
    params: dict[str, Any] = Field(default_factory=dict)


class Shape(Value):
    """Width of one layer after surgery."""

    outputs: int
    inputs: int
    groups: int = 1


class LayerFormat(Value):
    """How one layer's weights are stored."""

    bits: int
    group_size: int = 0
    scale_bits: int = 0
    zero_bits: int = 0
    bias_bits: int = 32


class StudentShape(Value):
    """Dimensions of a distilled student; None keeps the teacher's."""

    blocks: int | None = None
    hidden_size: int | None = None
    ffn_size: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    width: float | None = None  # share of the channels or hidden units kept, where there is no transformer


class CurvePoint(Value):
    """One step of a training curve."""

    step: int
    loss: float


class Decision(Value):
    """What only data could tell: enough to compute the result's table and to rebuild its structure."""

    technique: str
    shapes: dict[str, Shape] = Field(default_factory=dict)
    ranks: dict[str, int] = Field(default_factory=dict)
    dropped_blocks: tuple[int, ...] = ()
    density: dict[str, float] = Field(default_factory=dict)
    pattern: str = "unstructured"
    formats: dict[str, LayerFormat] = Field(default_factory=dict)
    student: StudentShape | None = None
    experts: dict[str, int] = Field(default_factory=dict)  # left in each stack of experts and each router
    image_size: tuple[int, int, int] | None = None  # that the model reads from now on, where that changed
    kept: bool = True  # graph_fusion: whether the fused file measured faster
    curve: tuple[CurvePoint, ...] = ()
    skipped: tuple[Refusal, ...] = ()


class Quality(Value):
    """A measured score by a named metric."""

    metric: str
    value: float
    higher_is_better: bool
    unit: Literal["pp", "%"]  # the unit in which its loss is counted

    def drop_from(self, baseline: Self, unit: Literal["pp", "%"] | None = None) -> float:
        """Loss against `baseline` in the metric's own unit or the one asked for; negative: a gain.

        `pp`: percentage points of values in 0…1. `%`: percent of the baseline's value.
        """
        worse = baseline.value - self.value if self.higher_is_better else self.value - baseline.value
        if (unit or self.unit) == "pp":
            return 100 * worse
        return 100 * worse / max(abs(baseline.value), 1e-12)


class Latency(Value):
    p50: float
    p95: float


class Ratio(Value):
    """A measured ratio with its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Measurement(Value):
    """What one file gave on this machine."""

    size_bytes: int
    latency_ms: Latency
    peak_memory_bytes: int
    quality: Quality
    download_bytes: int  # after entropy coding


class Plan(Value):
    """A chain with every parameter fixed: what `advisor run` carries out."""

    schema_version: Literal["advisor.plan/1"] = Field("advisor.plan/1", alias="schema")
    model: str
    task: str
    arch: str = ""  # as the user gave it; empty: read from the model
    target: str
    knowledge: str = ""  # the user's folder, which may name the target
    workload: Workload
    budget: Budget
    goal: str = "overall"
    data: dict[str, str] = Field(
        default_factory=dict
    )  # train, calibration, eval: the user's files; empty: the zoo's own
    metric: str = ""  # module:function; empty: the task's own
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    stages: tuple[Stage, ...]
    estimate: Estimate | None = None
    reasons: tuple[str, ...] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

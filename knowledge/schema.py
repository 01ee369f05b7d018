"""Rules, claims and targets: what the YAML files under `knowledge/` may say."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from knowledge.conditions import PLACEHOLDER, VOCABULARY
from knowledge.layers import Family as Architecture
from knowledge.techniques.base import Choices, Family, Need, Range
from knowledge.techniques.catalog import CATALOG
from knowledge.values import Value

Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.:-]*$")]
Text = Annotated[str, Field(min_length=1)]
Operator = Literal[
    "QLinearConv", "MatMulInteger", "DynamicQuantizeLSTM", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"
]
Status = Literal["measured", "paper", "reported", "corrected", "unsourced"]
STATUSES: tuple[Status, ...] = ("measured", "paper", "reported", "corrected", "unsourced")  # strongest first


class Selector(Value):
    """Which techniques, or which chains, a conclusion is about. Exactly one of the five is given."""

    technique: str | None = None
    family: Family | None = None
    need: Need | None = None  # techniques that need this
    chain: tuple[Family, ...] | None = None  # chains of exactly these families, recovery and fusion aside
    compression: tuple[float, float] | None = None  # chains that compress within these bounds
    exclude: tuple[str, ...] = ()  # techniques that are not meant

    @model_validator(mode="after")
    def _one_subject(self) -> Selector:
        subjects = (self.technique, self.family, self.need, self.chain, self.compression)
        if sum(s is not None for s in subjects) != 1:
            raise ValueError("name exactly one of technique, family, need, chain, compression")
        for name in (*([self.technique] if self.technique else ()), *self.exclude):
            _known_technique(name)
        return self

    def covers(self, technique: str) -> bool:
        """Whether a technique id is meant; chain selectors mean no single technique."""
        cls = CATALOG[technique]
        if technique in self.exclude:
            return False
        if self.technique is not None:
            return technique == self.technique
        if self.family is not None:
            return cls.family is self.family
        return self.need is not None and self.need in cls.needs


class Weighted(Selector):
    """A preference among chains whose estimates overlap. A weight of 4 decides alone, wherever the chain fits."""

    weight: Annotated[float, Field(gt=0, le=4)] = 0.5


class Order(Value):
    """`first` stands before `then` in every chain that holds both. Families or technique ids."""

    first: str
    then: str

    @model_validator(mode="after")
    def _known(self) -> Order:
        for name in (self.first, self.then):
            if name not in {f.value for f in Family}:
                _known_technique(name)
        return self


class Requirement(Value):
    """`technique` must follow every stage that `after` covers."""

    technique: str
    after: Selector

    @model_validator(mode="after")
    def _known(self) -> Requirement:
        _known_technique(self.technique)
        return self


class Setting(Value):
    """Fix a technique's parameter, name the value to start from, or narrow what search may try."""

    technique: str
    param: str
    value: Any = None
    start: Any = None
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _fits_the_parameter(self) -> Setting:
        cls = _known_technique(self.technique)
        if self.param not in cls.model_fields:
            near = difflib.get_close_matches(self.param, cls.model_fields, n=1) or list(cls.model_fields)
            raise ValueError(f"{self.technique} has no parameter {self.param!r}: did you mean {', '.join(near)}?")
        space = cls.space().get(self.param)
        if (self.low is not None or self.high is not None) and not isinstance(space, Range):
            raise ValueError(f"{self.technique}.{self.param} is not a range: give value or start")
        for given in (self.value, self.start):
            if given is not None:
                cls.model_validate({self.param: given})
        return self

    def narrow(self, space: Range | Choices) -> Range | Choices:
        """The part of a search space that is left."""
        if self.value is not None:
            return Choices(self.value)
        if not isinstance(space, Range):
            return space
        low = max(space.low, self.low if self.low is not None else space.low)
        high = min(space.high, self.high if self.high is not None else space.high)
        return Range(min(low, high), high, step=space.step, log=space.log)


class Conclusion(Value):
    """One thing that follows. Exactly one of the seven is given."""

    prefer: Weighted | None = None
    avoid: Weighted | None = None
    refuse: Selector | None = None
    require: Requirement | None = None
    before: Order | None = None
    set: Setting | None = None
    warn: Selector | Literal["all"] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Conclusion:
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            raise ValueError(f"name exactly one of {', '.join(type(self).model_fields)}")
        if self.refuse is not None and (self.refuse.chain is not None or self.refuse.compression is not None):
            raise ValueError("refuse names a technique, a family or a need, not a chain")
        return self


class Rule(Value):
    """A piece of advice as data: what it looks at, what follows, why, and who says so."""

    id: Id
    when: dict[str, Any] = Field(default_factory=dict)
    then: tuple[Conclusion, ...]
    text: Text  # one sentence; {fact} is filled from the request
    source: Text
    remedy: str = ""  # what would help, for refusals
    departs: str = ""  # what common advice says instead, and why this differs
    tree: str = ""  # title of the file

    @model_validator(mode="after")
    def _placeholders_are_facts(self) -> Rule:
        for text in (self.text, self.remedy, self.departs):
            for name in PLACEHOLDER.findall(text):
                if name not in VOCABULARY:
                    raise ValueError(f"{{{name}}} is not a fact")
        return self


class Claim(Value):
    """A published or measured figure: what a technique did to one model, by which protocol, and how sure that is."""

    id: Id
    technique: str
    params: dict[str, Any] = Field(default_factory=dict)
    arch: Architecture
    model: Text
    protocol: Text
    metric: Literal["accuracy", "perplexity", "similarity"]
    baseline: float | None = None  # what the metric was, where known
    drop: float  # loss: points of accuracy, or relative percent; negative: a gain
    unit: Literal["pp", "%"]
    recovered: bool = False  # training followed
    estimate: bool = True  # False: kept for the record, not for estimates
    source: Text
    status: Status
    note: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Claim:
        _known_technique(self.technique).model_validate(self.params)
        if (self.metric == "accuracy") != (self.unit == "pp"):
            raise ValueError("accuracy is lost in pp, perplexity and similarity in %")
        return self


class Figure(Value):
    """A number with its origin: the address of a page, `measured: …`, or `estimated`."""

    value: Annotated[float, Field(gt=0)]
    source: Text


class Target(Value):
    """Hardware and limits of one place where models run. Rates are peaks; `efficiency` is the share reached."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    id: Id
    about: Text
    target_class: Literal["mobile", "edge", "browser", "server", "on-premises"] = Field(alias="class")
    device: Literal["cpu", "gpu"] = "cpu"
    provider: str = "CPUExecutionProvider"
    threads: Annotated[int, Field(ge=1)] = 1
    accelerates: dict[Literal["fp16", "int8_dot", "2:4", "unstructured"], Text] = Field(default_factory=dict)
    operators: dict[Operator, Text] = Field(default_factory=dict)  # of compressed files, with kernels in its runtime
    gflops_fp32: Figure  # multiply and add count as two
    fp16_factor: Figure  # arithmetic rate of fp16 ÷ fp32, end to end in the runtime
    int8_factor: Figure  # the same for int8 in dense and recurrent layers
    int8_conv_factor: Figure  # the same for int8 in convolutions
    bandwidth_gbps: Figure  # gigabytes per second
    node_overhead_us: Figure  # microseconds to start one weight-bearing operator
    efficiency: Figure  # share of the arithmetic peak that dense layers reach
    channel_block: Figure | None = None  # convolutions compute channels in blocks of this many
    max_size_bytes: Figure | None = None
    max_memory_bytes: Figure | None = None

    @property
    def measured(self) -> bool:
        """Whether its rates were measured, not estimated."""
        return self.efficiency.source.startswith("measured")


def _known_technique(name: str) -> Any:
    if name not in CATALOG:
        near = difflib.get_close_matches(name, CATALOG, n=3) or list(CATALOG)
        raise ValueError(f"unknown technique {name!r}: did you mean {', '.join(near)}?")
    return CATALOG[name]

"""Rules, claims and targets: what the YAML files under `knowledge/` may say."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from knowledge.conditions import PLACEHOLDER, VOCABULARY, Device, Feature, Operator, TargetClass, check
from knowledge.faults import Fault, Loc
from knowledge.layers import Family as Architecture
from knowledge.techniques.base import Choices, Family, Need, Range, Technique
from knowledge.techniques.catalog import CATALOG, parameter_problem
from knowledge.values import Value

ID_PATTERN = r"^[a-z0-9][a-z0-9_.:-]*$"
Id = Annotated[str, Field(pattern=ID_PATTERN)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
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
    def _one_subject(self) -> Self:
        subjects = (self.technique, self.family, self.need, self.chain, self.compression)
        if sum(s is not None for s in subjects) != 1:
            raise ValueError("name exactly one of technique, family, need, chain, compression")
        if self.technique is not None:
            known_technique(self.technique)
        for name in self.exclude:
            known_technique(name, "exclude")
        if self.exclude and (self.chain is not None or self.compression is not None):
            raise Fault(("exclude",), list(self.exclude), "a selector of chains has none", "leave it out")
        if self.compression is not None and not self.compression[0] <= self.compression[1]:
            raise Fault(("compression",), list(self.compression), "ends below where it begins", "write [low, high]")
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

    def techniques(self) -> tuple[str, ...]:
        """The techniques that are meant, in the catalogue's order."""
        if self.technique is not None:
            return () if self.technique in self.exclude else (self.technique,)
        return tuple(name for name in CATALOG if self.covers(name))


class Weighted(Selector):
    """A preference among chains whose estimates overlap. A weight of 4 decides alone, wherever the chain fits."""

    weight: Annotated[float, Field(gt=0, le=4)] = 0.5


class Order(Value):
    """`first` stands before `then` in every chain that holds both. Families or technique ids."""

    first: str
    then: str

    @model_validator(mode="after")
    def _known(self) -> Self:
        for field, name in (("first", self.first), ("then", self.then)):
            if name not in {f.value for f in Family}:
                known_technique(name, field)
        return self


class Requirement(Value):
    """`technique` must follow every stage that `after` covers."""

    technique: str
    after: Selector

    @model_validator(mode="after")
    def _known(self) -> Self:
        known_technique(self.technique)
        if self.after.chain is not None or self.after.compression is not None:
            raise Fault(("after",), "", "names chains", "name a technique, a family or a need")
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
    def _fits_the_parameter(self) -> Self:
        cls = known_technique(self.technique)
        if self.param not in cls.model_fields:
            near = difflib.get_close_matches(self.param, cls.model_fields, n=1) or list(cls.model_fields)
            problem = f"{self.technique} has no parameter {self.param!r}"
            raise Fault(("param",), self.param, problem, f"did you mean {', '.join(near)}?")
        for field in ("value", "start"):
            if (given := getattr(self, field)) is not None:
                check_params(cls, {self.param: given}, (field,))
        if self.low is not None or self.high is not None:
            self._check_range(cls.space().get(self.param))
        elif self.value is None and self.start is None:
            raise Fault((), "", "sets nothing", "give value, start, low or high")
        return self

    def _check_range(self, space: Range | Choices | None) -> None:
        name = f"{self.technique}.{self.param}"
        if not isinstance(space, Range):
            raise Fault(("param",), self.param, f"{name} is not a range", "give value or start")
        low = space.low if self.low is None else self.low
        high = space.high if self.high is None else self.high
        if not (low <= high and low <= space.high and high >= space.low):
            field = "high" if self.low is None else "low"
            remedy = f"search tries {space.low:g} to {space.high:g}"
            raise Fault((field,), getattr(self, field), f"nothing is left of {name}", remedy)

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
    def _one_kind(self) -> Self:
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

    @field_validator("when")
    @classmethod
    def _facts_that_are_known(cls, when: dict[str, Any]) -> dict[str, Any]:
        check(when, ())
        return when

    @model_validator(mode="after")
    def _placeholders_are_facts(self) -> Self:
        for field in ("text", "remedy", "departs"):
            for name in PLACEHOLDER.findall(getattr(self, field)):
                if name not in VOCABULARY:
                    near = difflib.get_close_matches(name, VOCABULARY, n=3) or ["one of `advisor knowledge facts`"]
                    raise Fault((field,), "", f"{{{name}}} is not a fact", f"did you mean {', '.join(near)}?")
        return self


class Claim(Value):
    """A published or measured figure: what a technique did to one model, by which protocol, and how sure that is."""

    id: Id
    technique: str
    params: dict[str, Any] = Field(default_factory=dict)
    chain: tuple[str, ...] = ()  # all techniques of it in order, where the figure is of several together
    arch: Architecture
    model: Text
    parameters: Annotated[float, Field(gt=0)] | None = None  # of that model, where known
    protocol: Text
    metric: Literal["accuracy", "perplexity", "similarity", "speedup", "compression"]
    baseline: float | None = None  # what the metric was, where known
    drop: float | None = None  # loss: points of accuracy, or relative percent; negative: a gain
    value: Annotated[float, Field(gt=0)] | None = None  # of a speedup or a compression: original ÷ compressed
    unit: Literal["pp", "%", "×"]
    recovered: bool = False  # training followed
    estimate: bool = True  # False: kept for the record, not for estimates
    source: Text
    status: Status
    note: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_params(known_technique(self.technique), self.params, ("params",))
        for name in self.chain:
            known_technique(name, "chain")
        if self.chain and self.technique not in self.chain:
            raise Fault(("chain",), list(self.chain), f"lacks {self.technique}", "name every technique of the chain")
        ratio = self.metric in ("speedup", "compression")
        if self.unit != ("×" if ratio else "pp" if self.metric == "accuracy" else "%"):
            problem = "accuracy is lost in pp, perplexity and similarity in %, speedup and compression are in ×"
            raise Fault(("unit",), self.unit, problem)
        given, other = ("value", "drop") if ratio else ("drop", "value")
        if getattr(self, given) is None:
            raise Fault((given,), "", "is missing", f"add `{given}:`")
        if getattr(self, other) is not None:
            raise Fault((other,), getattr(self, other), f"a figure of {self.metric} has none", f"give {given} alone")
        if self.estimate and (ratio or self.chain):
            problem = "estimates lean on losses of single techniques"
            raise Fault(("estimate",), self.estimate, problem, "add `estimate: false`")
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
    target_class: TargetClass = Field(alias="class")
    device: Device = "cpu"
    provider: str = "CPUExecutionProvider"
    threads: Annotated[int, Field(ge=1)] = 1
    accelerates: dict[Feature, Text] = Field(default_factory=dict)
    operators: dict[Operator, Text] = Field(default_factory=dict)  # of compressed files, with kernels in its runtime
    gflops_fp32: Figure  # multiply and add count as two
    fp16_factor: Figure  # arithmetic rate of fp16 ÷ fp32, end to end in the runtime
    int8_factor: Figure  # the same for int8 in dense and recurrent layers
    int8_conv_factor: Figure  # the same for int8 in convolutions
    bandwidth_gbps: Figure  # gigabytes per second
    node_overhead_us: Figure  # microseconds to start one weight-bearing operator
    efficiency: Figure  # share of the arithmetic peak that dense layers reach
    channel_block: Figure | None = None  # convolutions compute channels in blocks of this many
    # for classes of operators that differ from these; `advisor.roofline` says what stands in where one is not given
    depthwise_factor: Figure | None = None  # arithmetic rate of depthwise convolutions ÷ dense layers
    int8_depthwise_factor: Figure | None = None  # the same for int8 ÷ fp32 in depthwise convolutions
    cache_bytes: Figure | None = None  # weights of smaller models stay in the cache between requests
    cache_gbps: Figure | None = None  # at which they are read there
    int8_cache_gbps: Figure | None = None  # the same for int8 weights, unpacked as they are read
    recurrent_gbps: Figure | None = None  # the same for weights that a recurrent layer reads again at every step
    elementwise_gbps: Figure | None = None  # numbers read and written by copies, sums and products
    function_gbps: Figure | None = None  # the same by norms, softmax and GELU
    quantize_gbps: Figure | None = None  # activations turned into int8 and sums turned back, of what is float
    int8_window_ns: Figure | None = None  # nanoseconds for a place of an int8 convolution's window
    int8_overhead_us: Figure | None = None  # to start an int8 operator that measures and converts its input
    light_overhead_us: Figure | None = None  # to start an operator without weights
    step_overhead_us: Figure | None = None  # one time step of a recurrent layer
    request_overhead_us: Figure | None = None  # one call of the runtime
    max_size_bytes: Figure | None = None
    max_memory_bytes: Figure | None = None

    @property
    def measured(self) -> bool:
        """Whether its rates were measured, not estimated."""
        return self.efficiency.source.startswith("measured")


def known_technique(name: str, *field: str) -> type[Technique]:
    """A technique's class; raises Fault naming the nearest ids, at `field` or `technique`."""
    if name not in CATALOG:
        near = difflib.get_close_matches(name, CATALOG, n=3) or list(CATALOG)
        raise Fault(field or ("technique",), name, "unknown technique", f"did you mean {', '.join(near)}?")
    return CATALOG[name]


def check_params(cls: type[Technique], params: Mapping[str, Any], loc: Loc) -> None:
    """Check some of a technique's parameters."""
    try:
        cls.model_validate(params)
    except ValidationError as error:
        name, value, problem, remedy = parameter_problem(cls, error, cls.id)
        param = name.rpartition(".")[2]
        raise Fault((*loc, param) if loc[0] == "params" else loc, value, problem, remedy) from None

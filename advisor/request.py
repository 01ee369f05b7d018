"""What is asked: every option with its default, parsed as people write it, settled against a model and a target."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from advisor.units import bytes_text, parse_bytes, parse_count, parse_drop, parse_milliseconds, parse_ratio
from advisor.workloads import check_length
from knowledge.conditions import DATA_LEVELS, FAMILIES, GOALS, TEACHERS, TRAINING
from knowledge.layers import Family, ModelInfo
from knowledge.names import nearest
from knowledge.schema import Target
from knowledge.tasks import TASKS, check_metric, check_task
from knowledge.values import Budget, Drop, InputError, Value, Workload

Goal = Literal["size", "latency", "throughput", "memory", "quality", "overall"]

TASK_OF_FAMILY: dict[Family, str] = {
    "transformer": "text-classification",
    "cnn": "image-classification",
    "rnn": "sequence-classification",
    "moe": "causal-lm",
}
SEEDS = 2**32  # how many there are
MOST_PARAMS = 10**15  # of a typical model: tables count in 64 bits
DEFAULT_DROP = 3.0
DEFAULT_SEQ_LEN = 128


class Request(Value):
    """A question to the advisor. Fields that are None are read from the model or the target, or have a default."""

    model: str = ""  # empty: a typical model of `arch`
    arch: Family | None = None
    task: str | None = None
    metric: str = ""  # module:function; empty: the task's own
    target: str = "server-cpu"
    max_drop: Annotated[float, Field(ge=0)] = DEFAULT_DROP
    max_drop_unit: Literal["pp", "%"] | None = None
    max_size_bytes: Annotated[int, Field(gt=0)] | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    max_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    min_speedup: Annotated[float, Field(gt=0)] | None = None
    goal: Goal = "overall"
    training: Literal["none", "light", "full"] = "full"
    data_level: Literal["none", "calibration", "unlabeled", "labeled"] = "labeled"
    teacher: Literal["none", "same-vocabulary", "other-vocabulary", "several", "text"] = "none"
    preset: str = ""  # a partial plan: conservative, balanced, aggressive or the user's own
    data: dict[str, str] = Field(default_factory=dict)  # train, calibration, eval: the user's files
    batch: Annotated[int, Field(ge=1)] = 1
    seq_len: Annotated[int, Field(ge=1)] | None = None
    image_size: tuple[int, int, int] | None = None  # channels, height, width
    threads: Annotated[int, Field(ge=1)] | None = None
    params: Annotated[int, Field(gt=0)] | None = None  # trainable numbers of the typical model
    top: Annotated[int, Field(ge=1)] = 5
    knowledge: str = ""  # the user's own folder of rules, claims, targets, models and presets
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 0
    arch_named: bool = Field(False, exclude=True)  # whether `arch` was asked for; filled by `settled`
    drop_unit_named: bool = Field(False, exclude=True)  # whether the drop came with a unit; filled by `settled`
    assumed: tuple[str, ...] = ()  # every default that mattered, in words; filled by `settled`

    @classmethod
    def parse(cls, **options: Any) -> Self:
        """A request from options as the command line has them: `max_drop="2pp"`, `max_size="50MB"`; None is not given.

        Raises InputError naming the option, its value and what is allowed.
        """
        given = {name: value for name, value in options.items() if value is not None and value != ""}
        values: dict[str, Any] = {}
        for name, value in given.items():
            values |= _parsed(name, value)
        if "data_level" not in values and (data := values.get("data")):
            values["data_level"] = "labeled" if "train" in data else "calibration"
        if "params" in values and values.get("model"):
            raise InputError(
                "params", given["params"], "scales a typical model, but a model was named", "leave one of them out"
            )
        if not values.get("model") and not values.get("arch"):
            remedy = f"name a model, or --arch {' | '.join(FAMILIES)}"
            raise InputError("model", "", "neither a model nor an architecture was given", remedy)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            label = ".".join(str(part) for part in first["loc"]).replace("_", "-")
            raise InputError(label, first["input"], first["msg"].lower(), "see `advisor recommend --help`") from None

    @property
    def limited(self) -> bool:
        """Whether a size, latency, memory or speed-up limit was given."""
        limits = (self.max_size_bytes, self.max_latency_ms, self.max_memory_bytes, self.min_speedup)
        return any(limit is not None for limit in limits)

    @property
    def budget(self) -> Budget:
        """What may be spent and what must be met. The drop's unit is right once the request is settled."""
        unit = self.max_drop_unit or TASKS.get(self.task or "", ("accuracy", "pp"))[1]
        return Budget(
            max_drop=Drop(amount=self.max_drop, unit=unit),
            max_size_bytes=self.max_size_bytes,
            max_latency_ms=self.max_latency_ms,
            max_memory_bytes=self.max_memory_bytes,
            min_speedup=self.min_speedup,
        )

    @property
    def workload(self) -> Workload:
        """The requests that the deployed model answers."""
        return Workload(batch=self.batch, seq_len=self.seq_len, image_size=self.image_size, threads=self.threads or 2)

    def settled(self, info: ModelInfo, target: Target) -> Self:
        """This request with everything filled that the model and the target decide, and every assumption named.

        Raises InputError where the request contradicts the model.
        """
        task = self.task or info.task or TASK_OF_FAMILY[info.family]
        check_metric(task, self.metric)
        kind, unit = TASKS.get(task, ("accuracy", "pp"))
        if unit == "%" and self.max_drop_unit == "pp":
            problem = f"{kind} is no share of right answers, its change is relative"
            raise InputError("max-drop", f"{self.max_drop:g}pp", problem, f"write {self.max_drop:g}%")
        text = info.vocab_size > 0
        check_length(self.seq_len, info)
        seq_len = self.seq_len or (min(DEFAULT_SEQ_LEN, info.max_length or DEFAULT_SEQ_LEN) if text else None)
        filled: dict[str, Any] = {
            "arch": info.family,
            "arch_named": self.arch is not None,
            "task": task,
            "drop_unit_named": self.max_drop_unit is not None,
            "max_drop_unit": self.max_drop_unit or unit,
            "goal": "quality" if self.limited and "goal" not in self.model_fields_set else self.goal,
            "seq_len": seq_len,
            "threads": self.threads or target.threads,
        }
        settled = self.model_copy(update=filled)
        return settled.model_copy(update={"assumed": self._assumptions(settled, info, target, text)})

    def _assumptions(self, settled: Self, info: ModelInfo, target: Target, text: bool) -> tuple[str, ...]:
        given, said = self.model_fields_set, [f"model: {info.note}"] if info.note else []
        if not self.model:
            said.append(f"model: {info.name}, a typical {info.family}")
            if self.task is None:
                said.append(f"task: {settled.task}")
        if "target" not in given:
            said.append(f"target: {settled.target}")
        if "max_drop" not in given:
            said.append(f"quality to spend: {settled.max_drop:g} {settled.max_drop_unit}")
        if "goal" not in given:
            aim = "least loss within the limits" if self.limited else "overall (size and speed together)"
            said.append(f"goal: {aim}")
        if target.max_size_bytes and target.max_size_bytes.value < (self.max_size_bytes or float("inf")):
            said.append(f"size: at most {bytes_text(target.max_size_bytes.value)}, the limit of {target.id}")
        if target.max_memory_bytes and target.max_memory_bytes.value < (self.max_memory_bytes or float("inf")):
            said.append(f"memory: at most {bytes_text(target.max_memory_bytes.value)}, the limit of {target.id}")
        if "training" not in given:
            said.append(f"training: {settled.training}")
        if "data_level" not in given:
            said.append(f"data: {settled.data_level}")
        shape = [f"batch {settled.batch}"] if "batch" not in given else []
        if self.seq_len is None and text:
            shape.append(f"sequence length {settled.seq_len}")
        if "threads" not in given:
            shape.append(f"{settled.threads} threads" if settled.threads != 1 else "1 thread")
        if shape:
            said.append(f"workload: {', '.join(shape)}")
        if self.max_drop_unit == "%" and TASKS.get(settled.task or "", ("accuracy", "pp"))[1] == "pp":
            said.append(f"{self.max_drop:g} % of an accuracy near 100 % is counted as {self.max_drop:g} pp")
        return tuple(said)


_FILLED = ("arch_named", "drop_unit_named", "assumed", "max_drop_unit")  # not to be given
OPTIONS = tuple(n.removesuffix("_bytes").removesuffix("_ms") for n in Request.model_fields if n not in _FILLED)


def _parsed(name: str, value: Any) -> dict[str, Any]:
    """One option as request fields."""
    label = name.replace("_", "-")
    choices: dict[str, Sequence[str]] = {
        "arch": FAMILIES,
        "goal": GOALS,
        "training": TRAINING,
        "data_level": DATA_LEVELS,
        "teacher": TEACHERS,
    }
    if name in choices:
        return {name: _choice(label, value, choices[name])}
    if name == "task":
        check_task(str(value))
        return {name: str(value)}
    if name == "max_drop":
        drop = parse_drop(label, value, "pp")
        named = str(value).strip().lower().endswith(("pp", "%"))
        return {"max_drop": drop.amount, "max_drop_unit": drop.unit if named else None}
    if name in ("max_size", "max_memory"):
        return {f"{name}_bytes": parse_bytes(label, value)}
    if name == "max_latency":
        return {"max_latency_ms": parse_milliseconds(label, value)}
    if name == "min_speedup":
        return {name: parse_ratio(label, value)}
    if name == "params":
        return {name: _whole(label, round(parse_count(label, value)), most=MOST_PARAMS)}
    if name == "image_size":
        return {name: _image_size(label, value)}
    if name in ("batch", "seq_len", "threads", "top"):
        return {name: _whole(label, value)}
    if name == "seed":
        return {name: _whole(label, value, 0, SEEDS - 1)}
    if name in Request.model_fields and name not in _FILLED:
        if name == "data" and not isinstance(value, Mapping):
            raise InputError(label, value, "is not a mapping", "give files as train, calibration and eval")
        return {name: dict(value) if isinstance(value, Mapping) else value}
    raise InputError(label, value, "unknown option", nearest(name, OPTIONS))


def _choice(label: str, value: Any, allowed: Sequence[str]) -> str:
    if value in allowed:
        return str(value)
    raise InputError(label, value, "unknown name", nearest(str(value), allowed))


def _whole(label: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number from `least` to `most`."""
    remedy = f"give a whole number from {least}{f' to {most}' if most else ' on'}"
    try:
        number = int(str(value))
    except ValueError:
        raise InputError(label, value, "is not a whole number", remedy) from None
    if number < least:
        raise InputError(label, value, f"is below {least}", remedy)
    if most is not None and number > most:
        raise InputError(label, value, f"is above {most}", remedy)
    return number


def _image_size(label: str, value: Any) -> tuple[int, int, int]:
    """`224` (three channels), `28x28` or `3x224x224`."""
    if isinstance(value, tuple | list):
        parts = [str(v) for v in value]
    else:
        parts = str(value).lower().replace("×", "x").replace(",", "x").split("x")
    sizes = [_whole(label, part) for part in parts]
    if len(sizes) == 1:
        return 3, sizes[0], sizes[0]
    if len(sizes) == 2:
        return 3, sizes[0], sizes[1]
    if len(sizes) == 3:
        return sizes[0], sizes[1], sizes[2]
    raise InputError(label, value, "is not an image size", "use 224 or 3x224x224")

"""What rules may look at, and the plain mappings in which they say so. Nothing here is evaluated as code.

    when: {arch: transformer}                       equal
    when: {target.class: [mobile, edge]}            one of
    when: {max_drop_pp: {ge: 2, le: 5}}             both comparisons
    when: {target.accelerates: int8_dot}            the list holds it
    when: {any: [{max_drop_pp: {lt: 2}}, {max_drop_percent: {lt: 2}}]}

All entries of a mapping must hold; an empty mapping always does. A fact that is unknown in a request fails every test
on it, `ne` and `not` included: a rule never fires on ignorance.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from knowledge.faults import Fault, Loc
from knowledge.layers import Family

FactValue = str | float | bool | tuple[str, ...] | None
Facts = Mapping[str, FactValue]


@dataclass(frozen=True)
class Fact:
    """One thing that rules may look at."""

    kind: Literal["choice", "name", "number", "flag", "list"]
    meaning: str
    values: tuple[str, ...] = ()  # of a choice or a list
    unit: str = ""


TargetClass = Literal["mobile", "edge", "browser", "server", "on-premises"]
Device = Literal["cpu", "gpu"]
Feature = Literal["fp16", "bf16", "int8_dot", "2:4", "unstructured"]
# of compressed files, besides those that every runtime has
Operator = Literal[
    "QLinearConv",
    "MatMulInteger",
    "DynamicQuantizeLSTM",
    "MatMulNBits",
    "MatMulBnb4",
    "GatherBlockQuantized",
    "QMoE",
]

FAMILIES: tuple[str, ...] = get_args(Family)
GOALS = ("size", "latency", "throughput", "memory", "quality", "overall")
TRAINING = ("none", "light", "full")
DATA_LEVELS = ("none", "calibration", "unlabeled", "labeled")
TEACHERS = ("none", "same-vocabulary", "other-vocabulary", "several", "text")
TASK_KINDS = ("generation", "classification", "embedding", "other")
SUBFAMILIES = (
    *("encoder", "decoder", "vision-transformer", "moe"),
    *("residual-cnn", "depthwise-cnn", "plain-cnn", "lstm", "complex"),
)

VOCABULARY: dict[str, Fact] = {
    "arch": Fact("choice", "architecture family", FAMILIES),
    "subfamily": Fact(
        "choice",
        "kind of model inside the family; complex: its core computes in complex numbers",
        SUBFAMILIES,
    ),
    "task": Fact("name", "what the model is used for"),
    "task.kind": Fact("choice", "what comes out: text, a class, a vector", TASK_KINDS),
    "metric": Fact("choice", "kind of quality that is spent", ("accuracy", "perplexity", "similarity", "fidelity")),
    "model.given": Fact("flag", "a model was named; otherwise a typical one stands in"),
    "model.file": Fact("flag", "the model is an exported ONNX file: nothing can be trained or reshaped"),
    "parameters": Fact("number", "trainable numbers, tied weights once"),
    "size_bytes": Fact("number", "bytes of the uncompressed file's numbers", unit="B"),
    "blocks": Fact("number", "repeated blocks"),
    "experts": Fact("number", "experts per layer"),
    "heads": Fact("number", "attention heads per block"),
    "kv_heads": Fact("number", "heads of keys and values per block; fewer than `heads` where they are shared"),
    "vocab_size": Fact("number", "entries of the token embedding"),
    "embedding_share": Fact("number", "share of the bytes in embeddings, 0 to 1"),
    "ffn_share": Fact("number", "share of the bytes in feed-forward layers and experts, 0 to 1"),
    "attention_share": Fact("number", "share of the bytes in attention layers, 0 to 1"),
    "conv_share": Fact("number", "share of the multiply-accumulates in convolutions, 0 to 1"),
    "overhead_share": Fact("number", "share of the latency that starting operators takes, 0 to 1"),
    "memory_share": Fact("number", "share of the latency in layers that wait for memory, 0 to 1"),
    "target": Fact("name", "id of the target"),
    "target.class": Fact("choice", "where the model runs", get_args(TargetClass)),
    "target.device": Fact("choice", "what computes", get_args(Device)),
    "target.accelerates": Fact(
        "list", "arithmetic faster than dense fp32 there, with a runtime that uses it", get_args(Feature)
    ),
    "target.operators": Fact(
        "list", "operators of compressed files that its runtime has kernels for", get_args(Operator)
    ),
    "target.runtime": Fact("name", "execution provider of the runtime"),
    "target.memory_bytes": Fact("number", "memory that a model may take there", unit="B"),
    "target.size_limit_bytes": Fact("number", "largest file that may be shipped there", unit="B"),
    "target.channel_block": Fact("number", "channels that convolutions there compute at once"),
    "max_drop_pp": Fact("number", "points of accuracy that may be lost", unit="pp"),
    "max_drop_percent": Fact("number", "relative loss of the score that is allowed", unit="%"),
    "goal": Fact("choice", "what to improve first", GOALS),
    "training": Fact("choice", "how much training is possible", TRAINING),
    "data_level": Fact("choice", "the best data at hand", DATA_LEVELS),
    "teacher": Fact("choice", "teachers at hand besides the model itself; text: only what one wrote", TEACHERS),
    "preset": Fact("name", "preset that was asked for"),
    "evidence": Fact("number", "chains that the user's own runs measured on this model"),
    "limits": Fact("flag", "a size, latency, memory or speed-up limit was given"),
    "latency_limited": Fact("flag", "a longest latency or a least speed-up was given"),
    "fits_already": Fact("flag", "the uncompressed model meets every limit of the request and the target"),
    "wanted_ratio": Fact("number", "uncompressed bytes ÷ the smallest size limit", unit="×"),
    "wanted_speedup": Fact("number", "speed-up that the limits ask for", unit="×"),
    "batch": Fact("number", "samples per request"),
    "seq_len": Fact("number", "tokens or time steps per sample"),
}

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}
_NUMERIC_ONLY = {"lt", "le", "gt", "ge"}
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")  # in a rule's sentence: {fact}


class ConditionError(Fault):
    """A condition that cannot be understood."""


def check(when: Mapping[str, Any], where: Loc = ("when",)) -> None:
    """Raise ConditionError on an unknown fact, operator or value."""
    for name, wanted in when.items():
        field = (*where, str(name))
        if name == "any":
            if not isinstance(wanted, list) or not wanted or not all(isinstance(w, Mapping) for w in wanted):
                raise ConditionError(field, wanted, "is not a list of mappings", "write `any: [{…}, {…}]`")
            for number, alternative in enumerate(wanted):
                check(alternative, (*field, number))
            continue
        if name not in VOCABULARY:
            near = difflib.get_close_matches(str(name), VOCABULARY, n=3) or list(VOCABULARY)
            raise ConditionError(field, wanted, "unknown fact", f"did you mean {', '.join(near)}?")
        if wanted in ([], {}):
            raise ConditionError(field, wanted, "names no value", "write a value, a list of values or {lt: …}")
        for test, value in tests(wanted):
            _check_test(VOCABULARY[name], field, test, value)


def _check_test(fact: Fact, field: Loc, test: str, value: Any) -> None:
    if test not in _COMPARE and test not in ("in", "not"):
        raise ConditionError(field, test, "unknown operator", f"known: {', '.join(_COMPARE)}, in, not")
    if test in _NUMERIC_ONLY and fact.kind != "number":
        raise ConditionError(field, test, f"compares a {fact.kind} by size", "use eq, ne, in or not")
    if isinstance(value, list) and fact.kind != "list" and test in _COMPARE:
        raise ConditionError(field, value, f"is a list, and {test} compares with one value", "use in or not")
    for one in value if isinstance(value, list) else [value]:
        _check_value(fact, field, one)


def _check_value(fact: Fact, field: Loc, value: Any) -> None:
    if fact.kind == "number":
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise ConditionError(field, value, "is not a number", f"the fact is {fact.meaning}")
    elif fact.kind == "flag":
        if not isinstance(value, bool):
            raise ConditionError(field, value, "is not true or false")
    elif not isinstance(value, str):
        raise ConditionError(field, value, "is not a name", f"the fact is {fact.meaning}")
    elif fact.values and value not in fact.values:
        raise ConditionError(field, value, "is never seen", f"values: {', '.join(fact.values)}")


def tests(wanted: Any) -> Iterator[tuple[str, Any]]:
    """(operator, value) pairs of one entry: a bare value is `eq`, a list is `in`."""
    if isinstance(wanted, Mapping):
        yield from ((str(test), value) for test, value in wanted.items())
    elif isinstance(wanted, list):
        yield "in", wanted
    else:
        yield "eq", wanted


def holds(when: Mapping[str, Any], facts: Facts) -> bool:
    """Whether every entry of a checked condition holds.

    >>> holds({"arch": "cnn", "max_drop_pp": {"lt": 2}}, {"arch": "cnn", "max_drop_pp": 1.0})
    True
    >>> holds({"max_drop_pp": {"ne": 3}}, {})
    False
    """
    for name, wanted in when.items():
        if name == "any":
            if not any(holds(alternative, facts) for alternative in wanted):
                return False
            continue
        seen = facts.get(name)
        if seen is None or not all(_passes(seen, test, value) for test, value in tests(wanted)):
            return False
    return True


def _passes(seen: Any, test: str, value: Any) -> bool:
    if isinstance(seen, tuple):  # a list fact: membership instead of equality
        wanted = set(value if isinstance(value, list) else [value])
        hit = bool(wanted & set(seen))
        return not hit if test in ("not", "ne") else hit
    if test == "in":
        return seen in (value if isinstance(value, list) else [value])
    if test == "not":
        return seen not in (value if isinstance(value, list) else [value])
    return _COMPARE[test](seen, value)


def reads(when: Mapping[str, Any]) -> set[str]:
    """Names of the facts that a condition looks at."""
    found: set[str] = set()
    for name, wanted in when.items():
        if name == "any":
            for alternative in wanted:
                found |= reads(alternative)
        else:
            found.add(name)
    return found


def fill(text: str, facts: Facts) -> str:
    """A rule's sentence with its {fact} placeholders filled; nothing else in braces is touched.

    >>> fill("{arch} on {target}", {"arch": "cnn", "target": "mobile"})
    'cnn on mobile'
    """
    return PLACEHOLDER.sub(lambda match: show(match[1], facts.get(match[1])), text)


def show(name: str, value: Any) -> str:
    """A fact's value as people write it: bytes in MB, shares in percent."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "nothing"
    if name.endswith("_bytes"):
        return f"{value / 1e6:.4g} MB"
    if name.endswith("_share"):
        return f"{100 * value:.0f} %"
    if isinstance(value, int | float):
        unit = VOCABULARY[name].unit if name in VOCABULARY else ""
        number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return f"{number}{'' if unit == '×' else ' '}{unit}".strip()
    return str(value)

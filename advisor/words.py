"""Conditions and conclusions of rules in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.ranking import DECISIVE
from knowledge.conditions import VOCABULARY, show, tests
from knowledge.schema import Conclusion, Order, Requirement, Selector, Setting, Weighted
from knowledge.techniques.base import Need
from knowledge.techniques.catalog import CATALOG
from knowledge.values import Value

NEEDED = {
    Need.CALIBRATION: "calibration data",
    Need.UNLABELED: "training inputs",
    Need.LABELED: "labels",
    Need.TRAINING: "training",
}
COMPARED = {"lt": "below", "le": "at most", "gt": "above", "ge": "at least", "eq": "", "ne": "not"}


class Condition(Value):
    """One thing that a rule looks at: the fact's name, its meaning, and what must hold, as in `arch is cnn`."""

    fact: str
    meaning: str
    text: str


def conditions_of(when: Mapping[str, Any]) -> tuple[Condition, ...]:
    """Each entry of a checked condition; alternatives are one entry."""
    return tuple(
        Condition(
            fact=name,
            meaning="one of these must hold" if name == "any" else VOCABULARY[name].meaning,
            text=_entry_text(name, wanted),
        )
        for name, wanted in when.items()
    )


def when_text(when: Mapping[str, Any]) -> str:
    """A checked condition as a clause.

    >>> when_text({"arch": ["cnn", "rnn"], "max_drop_pp": {"ge": 2, "le": 5}})
    'arch is cnn or rnn, and max_drop_pp is at least 2 pp and at most 5 pp'
    >>> when_text({"any": [{"training": "none"}, {"target.accelerates": {"not": "int8_dot"}}]})
    'training is none, or target.accelerates lacks int8_dot'
    >>> when_text({})
    'always'
    """
    parts = [_entry_text(name, wanted) for name, wanted in when.items()]
    if len(parts) > 1:
        parts = [f"({part})" if name == "any" else part for name, part in zip(when, parts, strict=True)]
    return ", and ".join(parts) or "always"


def _entry_text(name: str, wanted: Any) -> str:
    if name == "any":
        return ", or ".join(_alternative_text(alternative) for alternative in wanted)
    if VOCABULARY[name].kind == "list":
        return f"{name} {' and '.join(_membership_text(name, test, value) for test, value in tests(wanted))}"
    return f"{name} is {' and '.join(_test_text(name, test, value) for test, value in tests(wanted))}"


def _alternative_text(when: Mapping[str, Any]) -> str:
    return when_text(when) if len(when) == 1 else f"({when_text(when)})"


def _test_text(name: str, test: str, value: Any) -> str:
    if isinstance(value, list):
        shown = [show(name, one) for one in value]
        return _neither(shown, "not") if test in ("not", "ne") else listed(shown, "or")
    return f"{'not' if test == 'not' else COMPARED.get(test, '')} {show(name, value)}".strip()


def _membership_text(name: str, test: str, value: Any) -> str:
    """A test on a fact that is a list: it holds one of the values, or none of them."""
    shown = [show(name, one) for one in (value if isinstance(value, list) else [value])]
    if test not in ("not", "ne"):
        return f"includes {listed(shown, 'or')}"
    return f"includes {_neither(shown, '')}" if shown[1:] else f"lacks {shown[0]}"


def _neither(shown: Sequence[str], alone: str) -> str:
    return f"neither {listed(shown, 'nor')}" if shown[1:] else f"{alone} {shown[0]}"


def conclusion_text(conclusion: Conclusion) -> str:
    """What follows, as an instruction: `prefer every quantize technique (weight 0.4)`."""
    for kind in type(conclusion).model_fields:
        about = getattr(conclusion, kind)
        if isinstance(about, Weighted):
            return f"{kind} {selector_text(about)} ({_weight_text(about.weight)})"
        if isinstance(about, Order):
            return f"put {_named(about.first)} before {_named(about.then)}"
        if isinstance(about, Requirement):
            return f"put {about.technique} after {selector_text(about.after)}"
        if isinstance(about, Setting):
            return _setting_text(about)
        if about is not None:
            return f"{kind} {'of any chain' if about == 'all' else _of(kind) + selector_text(about)}"
    raise ValueError("a conclusion names one thing")


def _of(kind: str) -> str:
    return "of " if kind == "warn" else ""


def selector_text(about: Selector) -> str:
    """Which techniques or chains are meant; recovery and fusion may join a chain of named families."""
    if about.technique is not None:
        return about.technique
    if about.chain is not None:
        kinds = listed([family.value for family in about.chain], "and")
        return f"chains of {kinds} alone" if kinds else "doing nothing"
    if about.compression is not None:
        low, high = about.compression
        return f"chains that compress {low:g} to {high:g} times"
    if about.need is not None:
        kind = f"every technique that needs {NEEDED[about.need]}"
    else:
        kind = f"every {about.family} technique"
    return f"{kind} except {listed(about.exclude, 'and')}" if about.exclude else kind


def _named(name: str) -> str:
    return name if name in CATALOG else f"every {name} technique"


def _weight_text(weight: float) -> str:
    return f"weight {weight:g}: decides alone, wherever the chain fits" if weight >= DECISIVE else f"weight {weight:g}"


def _setting_text(setting: Setting) -> str:
    name = f"{setting.technique}.{setting.param}"
    said = []
    if setting.value is not None:
        said.append(f"fix {name} at {_given(setting.value)}")
    if setting.start is not None:
        said.append(f"start {name} at {_given(setting.start)}")
    if setting.low is not None or setting.high is not None:
        ends = [f"from {setting.low:g}" if setting.low is not None else ""]
        ends.append(f"up to {setting.high:g}" if setting.high is not None else "")
        said.append(f"search {name} {' '.join(filter(None, ends))}")
    return ", ".join(said) or f"leave {name} as it is"


def _given(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def listed(names: Sequence[str], last: str) -> str:
    """Names in a row.

    >>> listed(["a", "b", "c"], "or"), listed(["a"], "or")
    ('a, b or c', 'a')
    """
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))

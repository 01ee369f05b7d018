"""Conditions hold or do not, name facts that are known, and settings narrow what search tries."""

import pytest

from knowledge.conditions import VOCABULARY, ConditionError, check, holds, reads
from knowledge.load import load_knowledge
from knowledge.schema import Setting
from knowledge.techniques.base import Choices, Range

KNOWN = load_knowledge()


@pytest.mark.parametrize(
    ("when", "facts", "expected"),
    [
        ({}, {}, True),
        ({"arch": "cnn"}, {"arch": "cnn"}, True),
        ({"arch": ["cnn", "rnn"]}, {"arch": "moe"}, False),
        ({"max_drop_pp": {"ge": 2, "le": 5}}, {"max_drop_pp": 5.0}, True),
        ({"max_drop_pp": {"ge": 2, "le": 5}}, {"max_drop_pp": 5.1}, False),
        ({"max_drop_pp": {"lt": 2}}, {"max_drop_pp": None}, False),
        ({"arch": {"ne": "cnn"}}, {}, False),
        ({"arch": {"not": ["cnn", "rnn"]}}, {"arch": "moe"}, True),
        ({"target.accelerates": "fp16"}, {"target.accelerates": ("fp16", "2:4")}, True),
        ({"target.accelerates": {"not": "fp16"}}, {"target.accelerates": ()}, True),
        ({"target.accelerates": {"not": ["2:4", "fp16"]}}, {"target.accelerates": ("fp16",)}, False),
        ({"limits": False}, {"limits": False}, True),
        ({"any": [{"arch": "cnn"}, {"goal": "size"}]}, {"arch": "rnn", "goal": "size"}, True),
        ({"arch": "rnn", "any": [{"goal": "size"}]}, {"arch": "rnn", "goal": "latency"}, False),
    ],
)
def test_conditions(when, facts, expected):
    check(when)
    assert holds(when, facts) is expected


def test_what_a_condition_reads():
    assert reads({"arch": "cnn", "any": [{"goal": "size"}, {"limits": True}]}) == {"arch", "goal", "limits"}
    for rule in KNOWN.rules.values():
        assert reads(rule.when) <= set(VOCABULARY)


def test_an_unknown_fact_is_refused():
    with pytest.raises(ConditionError) as error:
        check({"ach": "cnn"})
    assert "arch" in error.value.remedy


def test_settings_narrow_and_never_widen():
    space = Range(0.2, 0.9, step=0.1)
    assert Setting(technique="svd", param="ratio", high=0.6).narrow(space) == Range(0.2, 0.6, step=0.1)
    assert Setting(technique="svd", param="ratio", low=0.1).narrow(space) == space
    assert Setting(technique="svd", param="ratio", value=0.5).narrow(space) == Choices(0.5)

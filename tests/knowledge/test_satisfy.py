"""Conditions that can hold, together and one wherever the other does: against every combination of a few values."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.conditions import holds
from knowledge.satisfy import alternatives, implies, together

FEATURES = ("fp16", "int8_dot", "2:4")
# facts with values on both sides of every number that the conditions below name; None: unknown
VALUES = {
    "arch": (None, "transformer", "cnn", "rnn", "moe"),
    "max_drop_pp": (None, 0.0, 0.5, 1.0, 1.5, 2.0, 9.0),
    "embedding_share": (None, 0.0, 0.5, 1.0),
    "limits": (None, True, False),
    "target.accelerates": (None, *(tuple(c) for n in range(4) for c in itertools.combinations(FEATURES, n))),
    "task": (None, "causal-lm", "other"),
}
EVERY = [dict(zip(VALUES, combined, strict=True)) for combined in itertools.product(*VALUES.values())]

names = st.sampled_from(["transformer", "cnn", "rnn"])
features = st.sampled_from(FEATURES)
numbers = st.sampled_from([0.0, 1.0, 2.0])


def passing(values):
    """A test on a fact whose values are drawn from `values`."""
    several = st.lists(values, min_size=1, max_size=3)
    either = st.sampled_from(["in", "not"])
    return st.one_of(values, several, st.builds(lambda test, wanted: {test: wanted}, either, several))


compared = st.dictionaries(st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), numbers, min_size=1, max_size=2)
entries = st.one_of(
    st.tuples(st.just("arch"), passing(names)),
    st.tuples(st.just("max_drop_pp"), st.one_of(compared, passing(numbers))),
    st.tuples(st.just("embedding_share"), compared),
    st.tuples(st.just("limits"), st.booleans()),
    st.tuples(st.just("target.accelerates"), passing(features)),
    st.tuples(st.just("task"), passing(st.sampled_from(["causal-lm"]))),
)
plain = st.lists(entries, max_size=3).map(dict)
conditions = st.builds(lambda when, any_: {**when, **any_}, plain, st.just({}) | st.fixed_dictionaries(
    {"any": st.lists(plain, min_size=1, max_size=2)}
))  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(conditions, conditions)
def test_answers_are_those_of_trying_every_combination(one, other):
    first, second = alternatives(one), alternatives(other)
    here, there = ({n for n, facts in enumerate(EVERY) if holds(when, facts)} for when in (one, other))
    assert bool(first) == bool(here)
    assert together(first, second) == bool(here & there)
    assert implies(first, second) == (here <= there)


@pytest.mark.parametrize(
    ("when", "possible"),
    [
        ({}, True),
        ({"max_drop_pp": {"lt": 2, "gt": 2}}, False),
        ({"max_drop_pp": {"le": 2, "ge": 2}}, True),
        ({"max_drop_pp": {"le": 2, "ge": 2, "ne": 2}}, False),
        ({"max_drop_pp": {"lt": 0}}, False),
        ({"embedding_share": {"gt": 1}}, False),
        ({"parameters": {"gt": 1}}, True),
        ({"arch": {"not": ["transformer", "cnn", "rnn", "moe"]}}, False),
        ({"arch": "cnn", "any": [{"arch": "rnn"}, {"arch": {"ne": "cnn"}}]}, False),
        ({"target.accelerates": {"in": ["fp16", "2:4"], "not": ["fp16"]}}, True),
        ({"target.accelerates": {"eq": "fp16", "not": ["fp16"]}}, False),
        ({"limits": {"ne": True, "eq": True}}, False),
    ],
)
def test_conditions_by_themselves(when, possible):
    assert bool(alternatives(when)) is possible


def test_several_conditions_may_exclude_each_other_only_together():
    whens = [{"arch": ["cnn", "rnn"]}, {"arch": ["rnn", "moe"]}, {"arch": ["moe", "cnn"]}]
    terms = [alternatives(when) for when in whens]
    assert all(together(a, b) for a, b in itertools.combinations(terms, 2))
    assert not together(*terms)


def test_one_alternative_after_the_other_may_cover_a_condition():
    whole, halves = {"max_drop_pp": {"ge": 0, "le": 9}}, [{"max_drop_pp": {"lt": 2}}, {"max_drop_pp": {"ge": 2}}]
    assert implies(alternatives(whole), alternatives({"any": halves}))
    assert not implies(alternatives(whole), alternatives({"any": [halves[0], {"max_drop_pp": {"gt": 2}}]}))
    assert not implies(alternatives({}), alternatives({"any": halves}))  # it may be unknown

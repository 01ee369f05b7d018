"""Files are held against torch where something reads their outputs."""

import numpy as np
import pytest

from backends.onnx.export_checks import difference


@pytest.fixture
def logits():
    """[2, 3, 4], of which the second text has one token of padding."""
    return np.random.default_rng(0).uniform(-1, 1, (2, 3, 4)), np.array([[1, 1, 1], [1, 1, 0]])


def test_tokens_count_and_padding_does_not(logits):
    expected, mask = logits
    for place, counts in (((1, 2), False), ((1, 1), True), ((0, 2), True)):
        got = expected.copy()
        got[place] += 0.5
        assert difference(expected, got) == pytest.approx(0.5)
        assert difference(expected, got, mask) == pytest.approx(0.5 if counts else 0.0)


def test_a_token_that_is_no_number_counts(logits):
    expected, mask = logits
    got = expected.copy()
    got[0, 0] = np.nan
    assert np.isnan(difference(expected, got, mask))


def test_vectors_of_texts_all_count():
    """Though there may be as many numbers as tokens."""
    expected, mask = np.zeros((2, 3)), np.array([[1, 1, 0], [1, 1, 0]])
    assert difference(expected, np.array([[0, 0, 0.5]] * 2), mask) == 0.5


def test_the_scale_is_that_of_what_counts(logits):
    expected, mask = logits
    got = expected + 0.25
    expected[1, 2] = 100.0
    assert difference(expected, got, mask) == pytest.approx(0.25)


def test_other_shapes_are_infinitely_far():
    assert difference(np.zeros((2, 3)), np.zeros((2, 4))) == float("inf")

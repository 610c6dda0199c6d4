"""Copied tokens of a pair, counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from main_align.scoring.ngrams import copied, copy_overlap, echo, ngram_size, novel_sum


@pytest.mark.parametrize(
    ("x", "y", "fraction"),
    [
        (range(10), range(10), 1.0),
        (range(10), range(50, 60), 0.0),
        (range(10), [*range(7), 99, 98, 97, 96, 95], 2 / 7),
        (range(3), range(10), 0.0),
        (range(10), range(5), None),
    ],
)
def test_copy_overlap_is_the_fraction_of_ngrams_in_x(x, y, fraction):
    value = copy_overlap(list(x), list(y))
    assert math.isnan(value) if fraction is None else value == pytest.approx(fraction)


@pytest.mark.parametrize(
    ("ids", "other", "where"),
    [
        (range(10), range(10), range(10)),
        (range(10), range(50, 60), []),
        ([90, 91, *range(7), 92, *range(5)], range(7), range(2, 9)),  # the second copy is too short
        (range(5), range(5), []),
    ],
)
def test_a_token_of_a_shared_ngram_is_copied(ids, other, where):
    assert np.flatnonzero(copied(list(ids), list(other), 6)).tolist() == list(where)


def test_copied_tokens_add_nothing_and_the_end_of_turn_counts():
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
    assert novel_sum(values, [0, 1, 2, 3, 4, 5, 99], [7, 0, 1, 2, 3, 4, 5], 6) == 64 + 128
    assert novel_sum(values, [0, 1, 2, 3, 4, 98, 99], [7, 0, 1, 2, 3, 4, 5], 6) == values.sum()


@pytest.mark.parametrize(
    ("x", "y", "fraction"),
    [
        (range(12), range(12), 1.0),
        ([1, 2, 3, 4], [9, 1, 2, 3, 4], 1.0),
        ([1, 2], [1, 2], 0.0),
        (range(12), range(6), 0.5),
    ],
)
def test_echo_is_the_fraction_of_the_instruction_that_is_copied(x, y, fraction):
    assert echo(list(x), list(y)) == fraction


def test_a_short_instruction_is_one_ngram():
    assert [ngram_size(range(n)) for n in (1, 3, 5, 6, 50)] == [3, 3, 5, 6, 6]

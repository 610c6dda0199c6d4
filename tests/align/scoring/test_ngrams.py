"""Copied tokens of a pair, counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from main_align.scoring.ngrams import copied, copy_overlap, echo, ngram_size, novel_sums


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


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (range(8), 0.0),  # all of x is copied
        ([*range(6), 50, 51], 0.5),  # 6 of 8 tokens
        ([*range(4), 50, 51, 52, 53], 1.0),  # half
        ([*range(3), 50, 51, 52, 53, 54], 1.0),  # no 4-gram
    ],
)
def test_copied_tokens_count_less_the_more_of_the_instruction_is_copied(x, weight):
    x, y = list(x), [60, *range(8), 61]
    ratio_y, ratio_x = 2.0 ** np.arange(11.0), 3.0 ** np.arange(9.0)  # both end in an end-of-turn, which always counts
    shared = len({*x} & {*range(8)})
    shared = shared if shared > 3 else 0
    lost_y, lost_x = ratio_y[1 : 1 + shared].sum(), ratio_x[:shared].sum()
    wanted = [ratio_y.sum() - (1 - weight) * lost_y, ratio_x.sum() - (1 - weight) * lost_x]
    np.testing.assert_allclose(novel_sums(ratio_y, ratio_x, y, x), wanted)


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
    assert [ngram_size(range(n)) for n in (1, 3, 4, 50)] == [3, 3, 4, 4]

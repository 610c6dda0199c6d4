"""The score columns from summed log-probabilities, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from main_align.scoring.columns import COLUMNS, copy_overlap, likelihood_scores, score_rows

# log p(y|x), log p(y), log p(x|y), log p(x)
LOGP = np.array([[-6.0, -12.0, -4.0, -7.0]])
X, Y = np.array([2]), np.array([3])


def test_columns_are_the_contract():
    assert list(COLUMNS) == [
        "id",
        "nll_y_given_x",
        "nll_y",
        "nll_x_given_y",
        "nll_x",
        "tokens_x",
        "tokens_y",
        "pmi_forward",
        "pmi_reverse",
        "mutual",
        "ifd",
        "r_ifd",
        "duality_gap",
        "copy_overlap",
        "semantic",
        "structural",
        "status",
        "reason",
    ]


def test_likelihood_scores_by_hand():
    scores = {name: value.item() for name, value in likelihood_scores(LOGP, X, Y).items()}
    assert scores == pytest.approx(
        {
            "nll_y_given_x": 2.0,
            "nll_y": 4.0,
            "nll_x_given_y": 2.0,
            "nll_x": 3.5,
            "pmi_forward": 2.0,
            "pmi_reverse": 1.5,
            "mutual": (3 * 2.0 + 2 * 1.5) / (2 * math.sqrt(5)),
            "ifd": 0.5,
            "r_ifd": 4 / 7,
            "duality_gap": abs((-7 - 6) - (-12 - 4)) / 5,
        }
    )


def test_a_consistent_pair_of_models_has_no_duality_gap():
    logp = np.array([[-5.0, -8.0, -6.0, -9.0]])  # log p(x) + log p(y|x) = log p(y) + log p(x|y)
    assert likelihood_scores(logp, X, Y)["duality_gap"] == 0


@pytest.mark.parametrize(
    ("x", "y", "share"),
    [
        (range(10), range(10), 1.0),
        (range(10), range(50, 60), 0.0),
        (range(10), [*range(7), 99, 98, 97, 96, 95], 2 / 7),
        (range(3), range(10), 0.0),
        (range(10), range(5), None),
    ],
)
def test_copy_overlap(x, y, share):
    value = copy_overlap(list(x), list(y))
    assert math.isnan(value) if share is None else value == pytest.approx(share)


def test_rows_have_the_columns_and_nulls_where_nothing_was_scored():
    rows = score_rows(
        ids=["a", "b"],
        status=["ok", "too_long"],
        reason=["", "line 2: long"],
        tokens_x=np.array([2, 0]),
        tokens_y=np.array([3, 0]),
        copy_overlap=np.array([np.nan, np.nan]),
        logp=np.vstack([LOGP, np.full((1, 4), np.nan)]),
        semantic=np.array([0.5, np.nan]),
        structural=np.array([-0.1, np.nan]),
    )
    assert all(list(row) == list(COLUMNS) for row in rows)
    assert rows[0]["tokens_y"] == 3
    assert rows[0]["copy_overlap"] is None
    named = ("id", "status", "reason")
    assert [rows[1][name] for name in named] == ["b", "too_long", "line 2: long"]
    assert all(value is None for name, value in rows[1].items() if name not in named)

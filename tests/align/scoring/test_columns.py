"""The score columns from summed log-probabilities, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from main_align.errors import UserError
from main_align.scoring.bank import BankScores
from main_align.scoring.columns import (
    ALIASES,
    COLUMNS,
    NUMERIC,
    PANELS,
    SCORES,
    TOKEN_SCORES,
    Column,
    likelihood_scores,
    lower_is_better,
)
from main_align.scoring.score_file import score_types

# log p(y|x), log p(y), log p(x|y), log p(x)
LOGP = np.array([[-6.0, -12.0, -4.0, -7.0]])
X, Y = np.array([2]), np.array([3])


def test_the_columns_and_their_order_are_fixed():
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
        "mutual_novel",
        "ifd",
        "r_ifd",
        "duality_gap",
        "nll_end",
        "copy_overlap",
        "echo",
        "semantic",
        "structural",
        "refusal",
        "other_script",
        "flags",
        "status",
        "reason",
    ]


def test_every_score_has_a_direction_and_one_formula():
    for column in COLUMNS.values():
        sources = [column.name in BankScores._fields, column.from_likelihoods, column.from_tokens]
        if column.kind == "score":
            assert column.better in ("lower", "higher")
            assert sum(map(bool, sources)) == 1
        else:
            assert column.better is None
            assert not any(sources)
    assert set(BankScores._fields) <= set(COLUMNS)


def test_a_score_without_a_direction_is_refused():
    with pytest.raises(ValueError, match="a score needs better="):
        Column("perplexity", "exp(nll_y)", group="likelihood")
    with pytest.raises(ValueError, match="and a group"):
        Column("perplexity", "exp(nll_y)", better="lower")


def test_derived_tables_follow_the_columns():
    assert {name for name in SCORES if lower_is_better(name)} == {
        "nll_y_given_x",
        "nll_y",
        "nll_x_given_y",
        "nll_x",
        "ifd",
        "r_ifd",
        "duality_gap",
        "nll_end",
        "copy_overlap",
        "echo",
    }
    assert (
        *("mutual", "mutual_novel", "pmi_forward", "pmi_reverse", "semantic", "structural"),
        *("ifd", "r_ifd", "duality_gap", "nll_end", "copy_overlap", "echo"),
        *("nll_y_given_x", "nll_y", "nll_x_given_y", "nll_x"),
    ) == SCORES
    assert tuple(PANELS) == (*SCORES[:7], "nll_end")
    assert set(NUMERIC) == {*SCORES, "tokens_x", "tokens_y", "refusal", "other_script"}
    assert TOKEN_SCORES == ("copy_overlap", "echo")
    assert ALIASES == {"forward_nll": "nll_y_given_x", "reverse_nll": "nll_x_given_y"}
    types = {name: str(kind) for name, kind in score_types(COLUMNS).items()}
    assert {name for name, kind in types.items() if kind == "int64"} == {
        "tokens_x",
        "tokens_y",
        "refusal",
        "other_script",
    }
    assert {name for name, kind in types.items() if kind == "string"} == {"id", "flags", "status", "reason"}


@pytest.mark.parametrize("name", ["perplexity_y", "status", "tokens_y"])
def test_the_direction_of_another_column_must_be_given(name):
    with pytest.raises(UserError, match="give --lower-is-better or --higher-is-better"):
        lower_is_better(name)


def test_likelihood_scores_match_a_hand_calculation():
    novel, end = np.array([[2.5, 1.0]]), np.array([-0.25])
    scores = {name: value.item() for name, value in likelihood_scores(LOGP, X, Y, novel, end).items()}
    assert scores == pytest.approx(
        {
            "nll_y_given_x": 2.0,
            "nll_y": 4.0,
            "nll_x_given_y": 2.0,
            "nll_x": 3.5,
            "pmi_forward": 2.0,
            "pmi_reverse": 1.5,
            "mutual": (3 * 2.0 / math.sqrt(3) + 2 * 1.5 / math.sqrt(2)) / 2,
            "mutual_novel": (2.5 / math.sqrt(3) + 1.0 / math.sqrt(2)) / 2,
            "ifd": 0.5,
            "r_ifd": 4 / 7,
            "duality_gap": abs((-7 - 6) - (-12 - 4)) / 5,
            "nll_end": 0.25,
        }
    )


def test_a_consistent_pair_of_models_has_no_duality_gap():
    logp = np.array([[-5.0, -8.0, -6.0, -9.0]])  # log p(x) + log p(y|x) = log p(y) + log p(x|y)
    assert likelihood_scores(logp, X, Y)["duality_gap"] == 0

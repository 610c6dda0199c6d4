"""Tests of the rows of a score file."""

from __future__ import annotations

import numpy as np
from main_align.scoring.bank import BankScores
from main_align.scoring.columns import COLUMNS, TOKEN_SCORES
from main_align.scoring.results import Likelihoods
from main_align.scoring.rows import score_rows


def test_rows_have_the_columns_and_nulls_where_nothing_was_scored():
    columns = {"tokens_x": np.array([2, 0]), "tokens_y": np.array([3, 0]), "refusal": np.array([1, 0])}
    columns["other_script"] = np.array([0, 0])
    columns |= dict.fromkeys(TOKEN_SCORES, np.full(2, np.nan))
    likelihoods = Likelihoods(
        logp=np.array([[-6.0, -12.0, -4.0, -7.0], [np.nan] * 4]),
        novel=np.array([[6.0, 3.0], [np.nan] * 2]),
        y_end=np.full(2, np.nan),
    )
    scores = BankScores(semantic=np.array([0.5, np.nan]), structural=np.full(2, np.nan))
    rows = score_rows(["a", "b"], ["ok", "too_long"], ["", "line 2: long"], columns, likelihoods, scores)
    assert all(list(row) == list(COLUMNS) for row in rows)
    assert rows[0]["tokens_y"] == 3
    assert rows[0]["copy_overlap"] is None
    assert rows[0]["nll_end"] is None
    assert rows[0]["mutual_novel"] == rows[0]["mutual"]
    assert rows[0]["semantic"] == 0.5
    named = ("id", "status", "reason")
    assert [rows[1][name] for name in named] == ["b", "too_long", "line 2: long"]
    assert all(value is None for name, value in rows[1].items() if name not in named)

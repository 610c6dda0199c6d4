"""Tests of the rows of a score file."""

from __future__ import annotations

import numpy as np
import pytest
from main_align.data.pairs import Pair
from main_align.scoring.assemble import assemble_rows, score_rows
from main_align.scoring.bank import BankScores
from main_align.scoring.columns import COLUMNS, NUMERIC, TOKEN_SCORES
from main_align.scoring.results import MemoryJournal, StoredWindow
from main_align.scoring.windows import score_windows

from tests.align.fakes import FakeScorer


def test_rows_have_the_columns_and_nulls_where_nothing_was_scored():
    window = StoredWindow(
        ids=["a", "b"],
        status=["ok", "too_long"],
        reason=["", "line 2: long"],
        arrays={"tokens_x": np.array([2, 0]), "tokens_y": np.array([3, 0]), "refusal": np.array([1, 0])},
        logp=np.array([[-6.0, -12.0, -4.0, -7.0], [np.nan] * 4]),
        novel=np.array([[6.0, 3.0], [np.nan] * 2]),
        y_end=np.full(2, np.nan),
        scored=np.array([0]),
        embed_x=np.zeros((1, 2), np.float32),
        embed_y=np.zeros((1, 2), np.float32),
    )
    scores = dict.fromkeys((*TOKEN_SCORES, *BankScores._fields), np.full(2, np.nan))
    rows = score_rows(window, scores | {"semantic": np.array([0.5, np.nan])})
    assert all(list(row) == list(COLUMNS) for row in rows)
    assert rows[0]["tokens_y"] == 3
    assert rows[0]["copy_overlap"] is None
    assert rows[0]["nll_end"] is None
    assert rows[0]["mutual_novel"] == rows[0]["mutual"]
    assert rows[0]["semantic"] == 0.5
    named = ("id", "status", "reason")
    assert [rows[1][name] for name in named] == ["b", "too_long", "line 2: long"]
    assert all(value is None for name, value in rows[1].items() if name not in named)


def test_the_size_of_the_sort_window_does_not_change_the_rows():
    pairs = [Pair(f"{n}", n + 1, f"question {n}" * (n % 5), f"answer {n * n}" if n != 3 else "") for n in range(40)]
    rows = []
    for size in (7, 100):
        journal, scorer = MemoryJournal(), FakeScorer(bank=20)
        finished = list(score_windows(scorer, pairs, size, journal))
        assert sum(step.pairs for step in finished) == 40
        rows.append(list(assemble_rows(journal, scorer)))
    for few, many in zip(*rows, strict=True):
        numbers = {name: few[name] for name in NUMERIC if few[name] is not None}
        assert numbers == pytest.approx({name: many[name] for name in NUMERIC if many[name] is not None}, rel=1e-6)
        assert [few[name] for name in ("id", "status", "reason")] == [many[name] for name in ("id", "status", "reason")]

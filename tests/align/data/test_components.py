"""Rows that share a key in any column are connected."""

from __future__ import annotations

from main_align.data.components import connected


def test_rows_that_share_a_key_in_any_column_have_the_same_number():
    first, second, third, fourth = connected([5, 6, 7, 5], [1, 2, 2, 3])
    assert first == fourth != second == third
    assert len(set(connected([1, 1, 2, 3], [4, 5, 5, 6]))) == 2  # the second row joins the first and the third
    assert connected([], []) == []

"""Packed rows: what sequences share is there once, and every token keeps its place and what comes before it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from main_align.models.packing import LEAST_SHARED, added_tokens, pack

STEM = list(range(100, 120))
BEGINNINGS = st.sampled_from([[], STEM, STEM[:16], STEM[:15], [*STEM, 7, 8, 9]])
SEQUENCE = st.tuples(BEGINNINGS, st.lists(st.integers(3, 5), min_size=1, max_size=9)).map(
    lambda both: both[0] + both[1]
)
SEQUENCES = st.lists(SEQUENCE, min_size=1, max_size=9)


@given(SEQUENCES, st.booleans())
def test_every_sequence_can_be_read_from_its_rows(sequences, share):
    packing = pack(sequences, share=share)
    assert [packing.ids[rows].tolist() for rows in packing.rows] == sequences
    assert sum(segment.length for segment in packing.segments) == len(packing.ids)
    start = 0
    for (
        segment
    ) in packing.segments:  # its own rows are the last of its path, and every path is the beginning of a sequence
        assert segment.path[-segment.length :].tolist() == list(range(start, start + segment.length))
        assert any(rows[: len(segment.path)].tolist() == segment.path.tolist() for rows in packing.rows)
        start += segment.length


@given(SEQUENCES)
def test_sequences_with_equal_first_tokens_share_every_equal_prefix(sequences):
    packing = pack(sequences)
    prefixes = {(*ids[:LEAST_SHARED], None, *ids[: n + 1]) for ids in sequences for n in range(len(ids))}
    assert len(packing.ids) == len(prefixes)
    unshared = pack(sequences, share=False)
    assert unshared.ids.tolist() == [number for ids in sequences for number in ids]


@given(SEQUENCES, SEQUENCES)
def test_added_tokens_are_never_fewer_than_those_of_the_packed_row(earlier, sequences):
    added = len(pack([*earlier, *sequences]).ids) - len(pack(earlier).ids)
    assert added_tokens(sequences, earlier) == added
    assert added_tokens(sequences, earlier[-1:]) >= added


@pytest.mark.parametrize("count", [2, 5])
def test_equal_sequences_are_one_segment(count):
    packing = pack([STEM] * count)
    assert [segment.length for segment in packing.segments] == [len(STEM)]
    assert all(np.array_equal(rows, packing.rows[0]) for rows in packing.rows)

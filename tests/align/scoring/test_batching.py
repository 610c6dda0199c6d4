"""Windows: statuses, truncation, packs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from main_align.data.pairs import Pair, Turn
from main_align.models.encoding import PairEncoder
from main_align.models.packing import pack
from main_align.scoring.batching import MOST_SHARING, fill_micro_batches, prepare_window
from main_align.scoring.prefetch import Prefetch

from tests.align.tiny_models import byte_tokenizer


@pytest.fixture(scope="module")
def encoder():
    return PairEncoder(byte_tokenizer())


def window(encoder, pairs, *, max_length=200, truncate=False, batch_tokens=300):
    steps = prepare_window(pairs, encoder, max_length=max_length, truncate=truncate, batch_tokens=batch_tokens)
    return Prefetch(steps).result()


BEGINNINGS = st.sampled_from([[], [1] * 16, [1] * 20, [1] * 20 + [2] * 9, [1] * 15])
SEQUENCES = st.tuples(BEGINNINGS, st.lists(st.integers(3, 5), min_size=1, max_size=30)).map(
    lambda both: both[0] + both[1]
)


@given(st.lists(st.tuples(SEQUENCES, SEQUENCES), max_size=20), st.integers(1, 120), st.booleans())
def test_micro_batches_hold_every_pair_once_within_the_budget(pairs, budget, share):
    packs = list(fill_micro_batches(range(len(pairs)), lambda row: list(pairs[row]), budget, share=share))
    assert [row for pack in packs for row in pack.rows] == list(range(len(pairs)))
    for micro_batch in packs:
        sequences = [ids for row in micro_batch.rows for ids in pairs[row]]
        assert micro_batch.tokens == len(pack(sequences, share=share).ids)
        assert micro_batch.tokens <= budget or len(micro_batch.rows) == 1
        in_full = micro_batch.tokens + micro_batch.shared_tokens
        assert in_full == sum(map(len, sequences))
        assert in_full <= MOST_SHARING * budget or len(micro_batch.rows) == 1


def test_pairs_with_a_common_side_or_context_are_neighbours_and_the_others_are_sorted_by_length(encoder):
    system = (Turn("system", "be brief, and say nothing that is not so"),)
    pairs = [
        Pair("0", 1, "what is the second prime", "3"),
        Pair("1", 2, "abc", "a response of middle length"),
        Pair("2", 3, "abc", "z"),
        Pair("3", 4, "what is the second prime", "the second prime is three, after two"),
        Pair("4", 5, "name it", "3"),
        Pair("5", 6, "z", "ab", system),
        Pair("6", 7, "q" * 20, "r" * 9),
        Pair("7", 8, "z" * 20, "abcd", system),
    ]
    w = window(encoder, pairs, batch_tokens=10**6)
    (batch,) = w.micro_batches
    assert batch.rows == (2, 1, 4, 0, 3, 6, 5, 7)
    assert batch.shared_tokens > 2 * len("what is the second prime") + 3 * len(system[0].text)


def test_a_micro_batch_counts_the_tokens_of_both_directions(encoder):
    w = window(encoder, [Pair("a", 1, "abc", "de")])
    forward, reverse = encoder.sequences(w.encoded[0])
    assert w.micro_batches[0].tokens == len(forward.ids) + len(reverse.ids)
    assert (w.tokens_x[0], w.tokens_y[0]) == (4, 3)  # one byte a token, and the end of turn


def test_statuses_name_the_line(encoder):
    pairs = [
        Pair("a", 3, " \n", "y"),
        Pair("b", 4, "x", ""),
        Pair("c", 5, "x", "y", context=(Turn("tool", "t"),)),
        Pair("d", 6, "x" * 150, "y" * 150),
        Pair("e", 7, status="bad_json", reason="line 7: broken"),
        Pair("f", 8, "x", "y"),
    ]
    w = window(encoder, pairs)
    wanted = [
        "empty_instruction",
        "empty_response",
        "unsupported_turns",
        "too_long",
        "bad_json",
        "ok",
    ]
    assert w.status == wanted
    for pair, reason in zip(pairs[:5], w.reason, strict=False):
        assert f"line {pair.line}:" in reason
    assert "150" in w.reason[3]
    assert "--truncate" in w.reason[3]
    assert "200" in w.reason[3]
    assert [e is None for e in w.encoded] == [True] * 5 + [False]
    assert [pack.rows for pack in w.micro_batches] == [(5,)]
    assert np.isnan(w.token_scores["copy_overlap"][:5]).all()


@pytest.mark.parametrize(("x", "y"), [(150, 150), (400, 20), (1, 500), (500, 1)])
def test_truncate_cuts_both_ends_in_proportion(encoder, x, y):
    w = window(encoder, [Pair("a", 1, "x" * x, "y" * y)], truncate=True)
    (pair,) = w.encoded
    assert w.status == ["truncated"]
    assert encoder.length(pair) == 200
    assert pair.x
    assert pair.y
    assert abs(len(pair.x) / (len(pair.x) + len(pair.y)) - x / (x + y)) < 0.01
    forward, _ = encoder.sequences(pair)
    assert forward.ids[-1] == encoder.tokenizer.eos_token_id  # the end of turn survives


def test_a_context_that_leaves_no_room_is_too_long_even_with_truncate(encoder):
    pair = Pair("a", 1, "x", "y", context=(Turn("system", "s" * 300),))
    w = window(encoder, [pair], truncate=True)
    assert w.status == ["too_long"]
    assert "context" in w.reason[0]
    assert not w.micro_batches


def test_markers_that_leave_no_room_are_named_without_a_context(encoder):
    w = window(encoder, [Pair("a", 1, "xy", "yz", unit="row")], max_length=encoder.overhead + 1, truncate=True)
    assert w.status == ["too_long"]
    assert w.reason[0].startswith("row 1: ")
    assert f"{encoder.overhead} tokens of the markers leave no room" in w.reason[0]
    assert "context" not in w.reason[0]


def test_a_window_is_the_same_every_time(encoder):
    pairs = [Pair(str(n), n, "x" * (n % 17 + 1), "y" * (n % 13 + 1)) for n in range(100)]
    first, again = window(encoder, pairs), window(encoder, pairs)
    assert first.micro_batches == again.micro_batches
    assert first.encoded == again.encoded
    assert len(first.micro_batches) > 5

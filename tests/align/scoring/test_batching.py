"""Windows: statuses, truncation, packs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from main_align.data.pairs import Pair, Turn
from main_align.models.encoding import PairEncoder
from main_align.scoring.batching import bucket_by_length, prepare_window

from tests.align.tiny_models import byte_tokenizer


@pytest.fixture(scope="module")
def encoder():
    return PairEncoder(byte_tokenizer())


def window(encoder, pairs, *, max_length=200, truncate=False, batch_tokens=300):
    return prepare_window(pairs, encoder, max_length=max_length, truncate=truncate, batch_tokens=batch_tokens)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_micro_batches_hold_every_pair_once_within_the_budget(sizes, budget):
    lengths = dict(enumerate(sizes))
    packs = bucket_by_length(lengths, budget)
    assert sorted(row for pack in packs for row in pack.rows) == sorted(lengths)
    for pack in packs:
        assert pack.tokens == sum(lengths[row] for row in pack.rows)
        assert pack.tokens <= budget or len(pack.rows) == 1
    in_order = [lengths[row] for pack in packs for row in pack.rows]
    assert in_order == sorted(in_order)


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

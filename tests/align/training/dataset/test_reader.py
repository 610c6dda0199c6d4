"""Data sets of every form give the same pairs, of at most the longest length."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from main_align.errors import UserError
from main_align.models.encoding import PairEncoder
from main_align.training.dataset.reader import COLUMNS

from tests.align.tiny_models import byte_tokenizer
from tests.align.training.dataset.readers import ASSISTANT, FORMS, LONG, USER, X, Y, read, reader


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pair(form):
    tokenizer = byte_tokenizer()
    (row,) = read([FORMS[form]])
    x = X if form != "alpaca" else "Name a\nprime."
    assert row["x_ids"] == tokenizer(x, add_special_tokens=False).input_ids
    assert row["y_ids"] == tokenizer(Y, add_special_tokens=False).input_ids
    assert row["context_ids"] == []
    assert row["y_mask"] == [1] * len(row["y_ids"])
    assert set(row) == set(COLUMNS)


def test_earlier_turns_are_context():
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}, USER, ASSISTANT]
    tokenizer = byte_tokenizer()
    (row,) = read([{"messages": turns}])
    assert tokenizer.decode(row["context_ids"]).count("<|im_start|>") == 2
    assert tokenizer.decode(row["x_ids"]) == X


def test_duplicates_share_a_group():
    records = [("a", "1"), ("b", "1"), ("b", "2"), ("c", "3"), ("d", "2")]
    groups = list(read([{"prompt": x, "completion": y} for x, y in records])["group"])
    assert groups[0] == groups[1] == groups[2] == groups[4]
    assert groups[3] not in groups[:3]


def test_a_prepared_data_set_is_left_as_it_is():
    prepared = read([FORMS["messages"]])
    assert reader().prepare(prepared, "train") is prepared


def test_pairs_over_length_are_refused_dropped_or_truncated(caplog):
    records = [FORMS["prompt_completion"], LONG]
    with pytest.raises(UserError, match=r"1 rows of the train.*row 1: \d+ tokens \(300 \+ 100 .*over_length='drop'"):
        read(records)
    assert list(read(records, over_length="drop")["row"]) == [0]
    assert "1 pairs over 256 tokens left out" in caplog.text
    cut = read(records, over_length="truncate")[1]
    encoder = PairEncoder(byte_tokenizer())
    assert len(cut["x_ids"]) + len(cut["y_ids"]) + encoder.overhead == 256
    assert len(cut["x_ids"]) == pytest.approx(3 * len(cut["y_ids"]), abs=3)
    assert len(cut["y_mask"]) == len(cut["y_ids"])
    with pytest.raises(UserError, match="the train data set has no pair of at most 256 tokens"):
        read([LONG], over_length="drop")

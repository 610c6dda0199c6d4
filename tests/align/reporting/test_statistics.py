"""Exact statistics, near-duplicates and groups."""

from __future__ import annotations

import numpy as np
import pytest
from main_align.data.pairs import Pair
from main_align.errors import UserError
from main_align.reporting.duplicates import WORDS, TextHashes, duplicate_groups, normalised
from main_align.reporting.groups import LISTED, FieldGroups, length_grouping
from main_align.reporting.statistics import histogram, quantiles, rank_correlation


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 30, 99])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, -9])) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, squares 4.5 and 5.
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_rank_correlation_leaves_rows_without_a_value_out() -> None:
    a, b = np.array([1.0, np.nan, 2, 3, np.inf]), np.array([1.0, 9, 2, 3, 0])
    assert rank_correlation(a, b) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) is None
    assert rank_correlation(np.array([1.0, 2]), np.array([1.0, 2])) is None


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0], list(range(1000)), [0.0] * 500 + [1e9]])
def test_a_histogram_counts_every_value(values: list[float]) -> None:
    counted = histogram(np.array(values, dtype=np.float64))
    assert sum(counted["counts"]) == len(values)
    assert counted["low"] < counted["high"]


def test_quantiles_are_those_of_the_column() -> None:
    assert quantiles(np.arange(101.0)) == [1, 10, 25, 50, 75, 90, 99]


@pytest.mark.parametrize(
    "text", ["  A-b_c\tD1 ", "", "?!", "x\x00y\x1fz", "Ünïcode — STRASSE ß", "ｆｕｌｌ ｗｉｄｔｈ", "\ud800 lone"]
)
def test_normalised_texts_are_words_with_one_space(text: str) -> None:
    result = normalised(text)
    assert result == result.strip().casefold()
    assert " ".join(result.translate(WORDS).split()) == result
    assert normalised(f" {text.upper()}!") == result


def test_words_in_ascii_are_those_of_other_texts() -> None:
    every = "".join(map(chr, range(128))) + "  A_b"
    assert normalised(every) == normalised(every + "é").removesuffix("é")


def test_words_keep_their_vowel_marks_and_emoji_have_none() -> None:
    words = ["दिन", "दान", "दीन", "กิน", "กัน", "שָׁלוֹם", "שלום"]
    assert len({normalised(word) for word in words}) == len(words)
    assert normalised("cafe\u0301 \u2764\ufe0f") == normalised("Café \u2764") == "café"


def test_duplicates_are_grouped_by_size_and_named_in_order() -> None:
    texts = [("A b", "one"), ("a, B!", "two"), ("c", "One."), ("a b", "TWO"), ("", ""), ("", ""), ("c", "three")]
    hashes = TextHashes()
    for line, (x, y) in enumerate(texts, 1):
        hashes.add(Pair(str(line), line, x, y))
    pair, instruction, response = duplicate_groups(hashes)
    assert (pair.groups, pair.extra, pair.largest) == (1, 1, [[1, 3]])
    assert (instruction.groups, instruction.extra, instruction.largest) == (2, 3, [[0, 1, 3], [2, 6]])
    assert (response.groups, response.extra) == (2, 2)


def test_lengths_are_grouped_at_powers_of_two() -> None:
    grouping = length_grouping(np.array([1.0, 15, 16, 31, 32, 5000, np.nan]))
    assert grouping.labels == ["under 16", "16 to 31", "32 to 63", "1024 and more", "not counted"]
    assert grouping.sizes == [2, 2, 1, 1, 1]


def test_a_field_groups_rows_by_its_values() -> None:
    groups = FieldGroups("meta.source")
    for source in ["b", "a", "a", None, 3]:
        groups.add({"meta": {"source": source}} if source is not None else {})
    groups.add(None)
    grouping = groups.grouping()
    assert dict(zip(grouping.labels, grouping.sizes, strict=True)) == {"a": 2, "(none)": 2, "b": 1, "3": 1}


def test_long_values_that_begin_alike_are_groups_of_their_own() -> None:
    groups = FieldGroups("url")
    for page in "aabc":
        groups.add({"url": "https://example.org/" + 60 * "x" + page})
    grouping = groups.grouping()
    assert grouping.sizes == [2, 1, 1]
    assert [label[-3:] for label in grouping.labels] == ["xxa", "xxb", "xxc"]
    assert all(len(label) == 60 and label.startswith("https://") for label in grouping.labels)


def test_many_values_are_listed_by_size_and_the_rest_is_one_group() -> None:
    groups = FieldGroups("n")
    for value in range(40):
        for _ in range(value + 1):
            groups.add({"n": value})
    grouping = groups.grouping()
    assert grouping.labels == [*map(str, range(39, 39 - LISTED, -1)), f"{40 - LISTED} other values"]
    assert sum(grouping.sizes) == 820


def test_a_field_that_no_row_has_is_refused_with_the_fields() -> None:
    groups = FieldGroups("sorce")
    groups.add({"source": "a"})
    with pytest.raises(UserError, match=r"--group-by sorce: no row has this field; the fields are 'source'"):
        groups.grouping()

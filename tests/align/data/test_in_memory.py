"""Pairs in memory: every container gives the same rows."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from main_align.data.fields import Fields
from main_align.data.pairs import Pair, Turn
from main_align.errors import UserError
from main_align.scoring.columns import COLUMNS
from main_align.scoring.scorer import Scorer

from tests.align.tiny_models import tiny_model_folder

ROWS = [{"instruction": f"question {n}", "response": f"answer {n * n}"} for n in range(4)]
LISTS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
TUPLES = [tuple(row.values()) for row in ROWS]
TURNS = [[{"role": "user", "content": x}, {"role": "assistant", "content": y}] for x, y in TUPLES]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer(tiny_model_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def expected(scorer: Scorer) -> list[dict[str, Any]]:
    return scorer.score(ROWS)


def frame(rows: Any) -> Any:
    return pytest.importorskip("pandas").DataFrame(rows)


CONTAINERS = {
    "a generator": lambda: iter(ROWS),
    "tuples": lambda: TUPLES,
    "lists of two texts": lambda: [list(pair) for pair in TUPLES],
    "lists of messages": lambda: TURNS,
    "pairs": lambda: [Pair(str(n + 1), n + 1, x, y) for n, (x, y) in enumerate(TUPLES)],
    "a data frame": lambda: frame(ROWS),
    "a data frame of JSON text": lambda: frame({"messages": list(map(json.dumps, TURNS))}),
    "a data frame of arrays": lambda: frame({"messages": [np.array(turns) for turns in TURNS]}),
    "a data frame with holes": lambda: frame([{**row, "system": None, "input": float("nan")} for row in ROWS]),
    "a relation of DuckDB": lambda: SimpleNamespace(columns=[], iter_rows=lambda: TUPLES, to_dicts=lambda: ROWS),
    "a table": lambda: pa.Table.from_pylist(ROWS),
    "a data set": lambda: pytest.importorskip("datasets").Dataset.from_list(ROWS),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_rows(scorer: Scorer, expected: list[dict[str, Any]], container: str) -> None:
    assert scorer.score(CONTAINERS[container]()) == expected


def test_a_dict_of_lists_returns_a_dict_of_lists(scorer: Scorer, expected: list[dict[str, Any]]) -> None:
    texts = list(map(json.dumps, TURNS))
    arrays = {name: np.array(column) for name, column in LISTS.items()}
    for columns in (LISTS, arrays, {"messages": TURNS}, {"messages": texts}, {"dialogue": texts}):
        assert scorer.score(columns) == {name: [row[name] for row in expected] for name in COLUMNS}


def test_a_data_set_can_be_mapped(scorer: Scorer, expected: list[dict[str, Any]]) -> None:
    data = pytest.importorskip("datasets").Dataset.from_list(ROWS)
    scored = data.map(scorer.score, batched=True)
    assert scored["response"] == LISTS["response"]
    assert scored["mutual"] == [row["mutual"] for row in expected]


def test_a_mapped_data_set_keeps_its_own_columns(scorer: Scorer, expected: list[dict[str, Any]]) -> None:
    own = {"status": "draft", "main_status": "mine", "reason": None}
    rows = [{"id": 7 * n, **own, **row} for n, row in enumerate(ROWS)]
    data = pytest.importorskip("datasets").Dataset.from_list(rows)
    scored = data.map(scorer.score, batched=True)
    assert [{name: row[name] for name in data.column_names} for row in scored] == rows
    assert scored["main_main_status"] == ["ok"] * len(ROWS)
    assert scored["mutual"] == [row["mutual"] for row in expected]


@pytest.mark.parametrize("record", [ROWS[0], {"messages": TURNS[0]}, {"conversations": list(TUPLES[0])}])
def test_one_dict_is_one_record(scorer: Scorer, expected: list[dict[str, Any]], record: dict[str, Any]) -> None:
    (row,) = scorer.score(record)
    assert (row["status"], row["nll_y"]) == ("ok", pytest.approx(expected[0]["nll_y"], abs=1e-5))


def test_turns_may_be_blank_or_quote_other_turns(scorer: Scorer) -> None:
    quote = json.dumps(TURNS[0])
    rows = [{"messages": turns} for turns in (["", ""], [quote, "two turns"], ["quote them", quote])]
    assert [row["status"] for row in scorer.score(rows)] == ["empty_instruction", "ok", "ok"]


def test_fields_can_be_named_and_progress_reported(
    scorer: Scorer, expected: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"q": x, "a": y, "note": "not scored"} for x, y in TUPLES]
    with caplog.at_level(logging.WARNING):
        assert scorer.score(rows, fields=Fields("q", "a"), progress=True) == expected
    assert caplog.text.count("'note'") == 1
    assert "4/4" in capsys.readouterr().err
    seen: list[int] = []
    scorer.score(ROWS, progress=lambda pairs, tokens: seen.append(pairs))
    assert sum(seen) == 4


def test_unused_text_is_logged_once_for_a_scorer(scorer: Scorer, caplog: pytest.LogCaptureFixture) -> None:
    Hasher = pytest.importorskip("datasets.fingerprint").Hasher
    state = Hasher.hash(scorer.score)
    with caplog.at_level(logging.WARNING):
        for field in ("first", "first", "second"):
            scorer.score([ROWS[0] | {field: "some text"}])
    assert [record.getMessage().partition(".")[0] for record in caplog.records] == [
        "text fields that are not scored: 'first'",
        "text fields that are not scored: 'second'",
    ]
    assert Hasher.hash(scorer.score) == state, "else `datasets` runs a cached map again"


def test_bad_records_get_a_status_and_other_types_raise(scorer: Scorer) -> None:
    rows = scorer.score([{"instruction": "x"}, [1, 2], ROWS[0]])
    assert [row["status"] for row in rows] == ["missing_field", "bad_json", "ok"]
    assert rows[0]["reason"].startswith("row 1: ")
    for bad in ("pairs.jsonl", ("x", "y"), 7):
        with pytest.raises(UserError, match=r"score_file|is text, not a pair|not int"):
            scorer.score(bad)


def test_a_pair_that_is_not_unicode_gets_the_status_of_such_a_record(scorer: Scorer) -> None:
    texts = [("\ud800", "y"), ("x", "\udce9")]
    pairs = [Pair(str(n), n, x, y, unit="row") for n, (x, y) in enumerate(texts, 1)]
    assert scorer.score(pairs) == scorer.score(texts)
    context = (Turn("system", "Be nice."), Turn("user", "\ud83d"), Turn("assistant", "\n"))
    rows = scorer.score([Pair("a", 7, "x", "y", context), Pair("b", 8, "x", "y")])
    assert [row["status"] for row in rows] == ["bad_encoding", "ok"]
    assert rows[0]["reason"].startswith("line 7: the user turn is not valid Unicode text")


def test_ids_of_any_type_are_kept_and_rows_joined_by_position(tmp_path: Path) -> None:
    from main_align.filtering.filter import filter_scores
    from main_align.scoring.job import score_file

    from tests.align.fakes import FakeScorer

    ids: list[Any] = [0.0, "same", "same", [3], None, "2"]
    rows = [{"id": i, "prompt": f"p{n}", "completion": f"c{n}", "x": float("nan")} for n, i in enumerate(ids)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = score_file(FakeScorer(), tmp_path / "in.jsonl", tmp_path / "s.csv")
    assert manifest["counts"] == {"ok": 6}
    assert manifest["repeated_ids"] == 1
    filter_scores(tmp_path / "s.csv", tmp_path / "k.jsonl", keep=1.0)
    text = (tmp_path / "k.jsonl").read_text()
    assert "NaN" not in text
    kept = [json.loads(line) for line in text.splitlines()]
    assert [row["id"] for row in kept] == ids
    assert [row["prompt"] for row in kept] == [row["prompt"] for row in rows]
    assert all(row["x"] is None for row in kept)

"""Writing: every format keeps the numbers, and files appear complete."""

from __future__ import annotations

import errno
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from main_align.data.atomic import (
    atomic_write,
)
from main_align.data.journal import Journal
from main_align.data.read import open_source
from main_align.data.write import (
    check_output,
    to_document,
    to_json,
    write_rows,
)
from main_align.errors import UserError
from main_align.scoring import score_file
from main_align.scoring.columns import COLUMNS
from main_align.scoring.score_file import (
    read_columns,
    score_rows_of,
    write_scores,
)


def row(number: int, **values: Any) -> dict[str, Any]:
    blank: dict[str, Any] = dict.fromkeys(COLUMNS)
    return blank | {"id": f"00{number}", "status": "ok", "reason": ""} | values


ROWS = [
    row(1, mutual=0.1 + 0.2, tokens_x=3, nll_y=1e-300),
    row(2, status="bad_json", reason='line 2: "quoted",\ncomma'),
    row(3, mutual=-1 / 3, tokens_x=2**40),
]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_numbers_are_written_with_every_digit(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scores.{ending}"
    write_scores(path, iter(ROWS))
    back = [{**r, "reason": r["reason"] or ""} for r in score_rows_of(path)]
    assert back == ROWS
    assert isinstance(back[0]["tokens_x"], int)
    first = path.read_bytes()
    write_scores(path, iter(ROWS))
    assert path.read_bytes() == first
    table = read_columns(path, "mutual")
    assert (table.rows, table.counts["bad_json"]) == (3, 1)
    assert table.columns["mutual"][0] == 0.1 + 0.2
    assert table.columns["mutual"][1] != table.columns["mutual"][1], "null reads as NaN"


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("size", [1, 2, 100])
def test_columns_are_read_as_rows_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, size: int) -> None:
    many = [
        *ROWS,
        row(4, mutual=float("nan"), refusal=1, tokens_x=2**53 + 1),
        row(5, status="too_long", reason="first"),
        row(6, status="bad_json", reason="later"),
        row(7, status="too_long", reason="second"),
        row(8, status=None, reason=None, tokens_y=0),
    ]
    path = tmp_path / f"scores.{ending}"
    write_scores(tmp_path / "scores.parquet", many)
    if ending == "arrow":
        pa.feather.write_feather(pq.read_table(tmp_path / "scores.parquet"), path, chunksize=3)
    monkeypatch.setattr(score_file, "BATCH", size)
    want = score_file._read_rows(path, ("mutual",))
    with monkeypatch.context() as patch:
        patch.setattr(score_file, "_read_rows", None)
        found = read_columns(path, "mutual")
    assert list(found.columns) == list(want.columns)
    for name, values in want.columns.items():
        np.testing.assert_array_equal(found.columns[name], values, name)
    assert list(found.counts.items()) == list(want.counts.items())
    assert list(found.reasons.items()) == list(want.reasons.items())
    assert found.reasons == {"bad_json": ROWS[1]["reason"], "too_long": "first"}
    assert found.rows == want.rows == 8


def test_columns_of_other_types_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    table = {"id": ["a", "b"], "status": ["ok", "ok"], "reason": ["", ""], "mutual": ["0.5", "1"], "text": ["1", "two"]}
    pq.write_table(pa.table(table), path)
    assert read_columns(path, "mutual").columns["mutual"].tolist() == [0.5, 1]
    with pytest.raises(UserError, match=r"row 2, column 'text' holds 'two', not a number"):
        read_columns(path, "text")
    with pytest.raises(UserError, match="no column 'nll_y'; it has id, status, reason, mutual, text"):
        read_columns(path, "nll_y")
    pq.write_table(pa.table({"mutual": [0.5]}), path)
    with pytest.raises(UserError, match="row 1 lacks id and status"):
        read_columns(path, "mutual")


def test_null_columns_of_parquet_keep_their_types(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.parquet", [ROWS[1]])
    schema = pq.read_schema(tmp_path / "s.parquet")
    kinds = {"id": "string", "flags": "string", "status": "string", "reason": "string"}
    kinds |= {"tokens_x": "int64", "tokens_y": "int64", "refusal": "int64", "other_script": "int64"}
    assert {n: str(schema.field(n).type) for n in COLUMNS} == {n: kinds.get(n, "double") for n in COLUMNS}


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scores.{ending}"
    path.write_text("old")

    def rows() -> Any:
        yield ROWS[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_scores(path, rows())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["a\rb", "a\nb", "a\r\nb", "\r", 'say "\r"', "a,b", ""])
def test_any_text_comes_back_from_csv(tmp_path: Path, text: str) -> None:
    write_scores(tmp_path / "s.csv", [row(1, reason=text), row(2)])
    assert [r["reason"] or "" for r in score_rows_of(tmp_path / "s.csv")] == [text, ""]
    content = (tmp_path / "s.csv").read_bytes()
    assert content.count(b"\r") == text.count("\r"), "lines end in a line feed alone"


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_bytes_are_written_as_the_text_that_they_are(tmp_path: Path, ending: str) -> None:
    path, schema = tmp_path / f"rows.{ending}", pa.schema([("a", pa.binary())])
    write_rows(path, [{"a": "né".encode()}], schema)
    assert [r.record for r in open_source(path).rows()] == [{"a": "né"}]
    message = rf"field 'a' of row 2 of the output .* to \.{ending} .*type bytes .*; write \.parquet instead"
    with pytest.raises(UserError, match=message):
        write_rows(path, [{"a": b"n"}, {"a": b"n\xe9"}], schema)


@pytest.mark.parametrize("many", [1, 20_000])
def test_the_field_and_the_row_that_do_not_fit_are_named(tmp_path: Path, many: int) -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.int64())])
    rows = [{"a": 1, "b": 2}] * many + [{"a": 1, "b": "two"}]
    with pytest.raises(UserError, match=rf"field 'b' of row {many + 1} of the output .*'two'.*; write \.jsonl instead"):
        write_rows(tmp_path / "rows.parquet", rows, schema)


def test_a_file_does_not_exist_before_it_is_complete(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "out") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").read_text() == "half"


def test_a_file_has_one_writer_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "out.tmp").write_text("left by a kill")
    with atomic_write(tmp_path / "out") as temporary:
        temporary.write_text("first")
        with pytest.raises(UserError, match="out: another process"), atomic_write(tmp_path / "out"):
            pass
    assert (tmp_path / "out").read_text() == "first"
    with atomic_write(tmp_path / "out") as temporary:
        temporary.write_text("second")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv", "o.parquet"])
def test_a_full_disk_names_the_file(tmp_path: Path, name: str) -> None:
    rows = [{"id": str(n), "status": "ok", "reason": str(n * n)} for n in range(5000)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=name):
            write_scores(tmp_path / name, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with atomic_write(tmp_path / "a.txt") as path:
        path.write_text("x")
    with Journal(tmp_path / "a.journal") as journal:
        journal.append({"a": 1})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.journal", "a.txt"]


def test_a_full_disk_names_the_journal(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(OSError, match=r"o\.journal"), Journal(tmp_path / "o.journal") as journal:
            journal.append({"text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_jsonl_is_strict_json(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.jsonl", ROWS)
    text = (tmp_path / "s.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == ROWS
    assert "NaN" not in text


def test_documents_are_strict_json() -> None:
    document = {"loss": float("nan"), "range": (1.5, float("-inf")), "name": "caf\ud83d"}
    want = {"loss": None, "range": [1.5, None], "name": "caf\ud83d"}
    for text in (to_document(document), to_json(document)):
        text.encode()
        assert json.loads(text, parse_constant=pytest.fail) == want


@pytest.mark.parametrize(("name", "message"), [("a.xlsx", "the ending"), ("no/a.csv", "does not exist")])
def test_an_unusable_output_path_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_output(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "not a score file"),
        ("id,status,mutual\na,ok,high\n", "'high', not a number"),
        ("id,status,mutual\na,ok\n", "2 cells"),
        ("id,status,nll_y\na,ok,1\n", "no column 'mutual'"),
        ("id,status,mutual\n", "no rows"),
    ],
)
def test_a_file_without_scores_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_columns(tmp_path / "s.csv", "mutual")

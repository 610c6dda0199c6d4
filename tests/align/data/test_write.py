"""Writing: every format keeps the numbers, and files appear complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from main_align.data.atomic import (
    atomic_write,
)
from main_align.data.write import (
    check_output,
)
from main_align.errors import UserError
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


def test_null_columns_of_parquet_keep_their_types(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.parquet", [ROWS[1]])
    schema = pq.read_schema(tmp_path / "s.parquet")
    kinds = {"id": "string", "flags": "string", "status": "string", "reason": "string"}
    kinds |= {"tokens_x": "int64", "tokens_y": "int64", "refusal": "int64"}
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


def test_a_file_does_not_exist_before_it_is_complete(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "out") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").read_text() == "half"


def test_jsonl_is_strict_json(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.jsonl", ROWS)
    text = (tmp_path / "s.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == ROWS
    assert "NaN" not in text


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

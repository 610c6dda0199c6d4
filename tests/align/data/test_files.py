"""Files of every format: the rows are found, or the error names the problem before a model is loaded."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from main_align.data.fields import Fields
from main_align.data.read import open_source, read_pairs
from main_align.data.sources.file_formats import FILE_FORMATS
from main_align.errors import UserError

ROWS = [{"instruction": f"x{n}", "response": f"y{n}"} for n in range(3)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE = b"instruction,response\nx0,y0\nx1,y1\nx2,y2\n"
TURNS = [[{"role": "user", "content": r["instruction"]}, {"role": "assistant", "content": r["response"]}] for r in ROWS]


def dumped(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent).encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0size"


def arrow(stream: bool) -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def parquet(rows: Sequence[dict[str, Any]] = ROWS) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


INDEX = {str(n): row for n, row in enumerate(ROWS)}
PANDAS = {name: {str(n): text for n, text in enumerate(column)} for name, column in COLUMNS.items()}
READ: dict[str, tuple[str, bytes]] = {
    "lines": ("a.jsonl", LINES),
    "ndjson": ("a.ndjson", LINES),
    "lines with a BOM and CRLF": ("a.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")),
    "CR alone": ("a.jsonl", LINES.replace(b"\n", b"\r")),
    "trailing commas": ("a.jsonl", LINES.replace(b"\n", b",\n")),
    "separators of Unicode inside a line": ("a.jsonl", LINES.replace(b"\n", b"\n\n", 1)),
    "an array in .jsonl": ("a.jsonl", dumped(ROWS, 2)),
    "an array on one line": ("a.jsonl", dumped(ROWS)),
    "an array, an element a line": ("a.jsonl", b"[\n" + LINES.replace(b"\n", b",\n")[:-2] + b"\n]\n"),
    "lines of messages": ("a.jsonl", b"\n".join(map(dumped, TURNS))),
    "an array of rows with an author": ("a.json", dumped([{"author": "doctor", **row} for row in ROWS])),
    "an array of rows with a known role": ("a.json", dumped([{"from": "bot", "text": "-", **row} for row in ROWS], 2)),
    "a list of rows with an author": ("a.json", dumped({"n": 3, "data": [{"speaker": "bot", **row} for row in ROWS]})),
    "one line of messages": ("a.jsonl", dumped(TURNS[0])),
    "lines of texts": ("a.jsonl", b"\n".join(dumped([r["instruction"], r["response"]]) for r in ROWS)),
    "an array of conversations": ("a.json", dumped(TURNS, 1)),
    "objects over several lines": ("a.json", b"\n".join(dumped(row, 2) for row in ROWS)),
    "lines named .json": ("a.json", LINES),
    "data": ("a.json", dumped({"version": "1", "data": ROWS})),
    "instances, pretty": ("a.json", dumped({"instances": ROWS}, 2)),
    "a list two levels down": ("a.json", dumped({"meta": {"n": 3}, "set": {"rows": ROWS}}, 2)),
    "pandas' default": ("a.json", dumped(PANDAS)),
    "pandas' default with an index of text": (
        "a.json",
        dumped({name: {f"k{key}": v for key, v in col.items()} for name, col in PANDAS.items()}, 1),
    ),
    "pandas' index": ("a.json", dumped(INDEX, 2)),
    "a dict of rows": ("a.json", dumped({f"k{key}": row for key, row in INDEX.items()})),
    "pandas' split": (
        "a.json",
        dumped({"columns": list(COLUMNS), "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]}),
    ),
    "pandas' table": ("a.json", dumped({"schema": {"fields": [{"name": "index"}]}, "data": ROWS})),
    "pandas' list": ("a.json", dumped(COLUMNS)),
    "columns of conversations as text": ("a.json", dumped({"dialogue": [json.dumps(turns) for turns in TURNS]})),
    "columns of conversations": ("a.json", dumped({"messages": TURNS, "source": ["a", "b", "c"]})),
    "a container in .jsonl": ("a.jsonl", dumped({"data": ROWS})),
    "gzip": ("a.jsonl.gz", gzip.compress(LINES)),
    "gzip by content": ("a.jsonl", gzip.compress(LINES)),
    "bz2": ("a.json.bz2", bz2.compress(dumped(ROWS))),
    "xz": ("a.csv.xz", lzma.compress(TABLE)),
    "zst": ("a.jsonl.zst", zstd(LINES)),
    "pzstd": ("a.jsonl.zst", b"".join(SKIPPABLE + zstd(part) for part in (LINES[:60], LINES[60:]))),
    "tsv": ("a.tsv", TABLE.replace(b",", b"\t")),
    "semicolons": ("a.csv", TABLE.replace(b",", b";")),
    "Excel's sep": ("a.csv", b"sep=;\n" + TABLE.replace(b",", b";")),
    "a table with CR": ("a.csv", TABLE.replace(b"\n", b"\r")),
    "messages in a table": (
        "a.csv",
        b"messages\n" + b"\n".join(b'"' + dumped(t).replace(b'"', b'""') + b'"' for t in TURNS),
    ),
    "parquet by content": ("a.jsonl", parquet()),
    "arrow file": ("a.arrow", arrow(False)),
    "arrow stream": ("a.arrow", arrow(True)),
}


@pytest.mark.parametrize("name", READ)
def test_the_rows_of_every_file_are_read(tmp_path: Path, name: str) -> None:
    file, content = READ[name]
    (tmp_path / file).write_bytes(content)
    source = open_source(tmp_path / file)
    expected = [(f"x{n}", f"y{n}", "ok") for n in range(1 if name == "one line of messages" else 3)]
    assert [(p.instruction, p.response, p.status) for p in read_pairs(tmp_path / file)] == expected
    assert source.inspect().rows == len(expected)
    assert source.inspect().digest == source.digest()
    source.check()


TORN = gzip.compress(LINES * 50)[:-40]
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "UTF-16": ("a.csv", TABLE.decode().encode("utf-16"), "is UTF-16; convert it with: iconv"),
    "UTF-16 without a mark": ("a.jsonl", LINES.decode().encode("utf-16-le"), "UTF-16 or binary"),
    "LFS": ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a workbook": ("a.csv", b"PK\x03\x04....", "Excel workbook"),
    "a web page": ("a.json", b"<!DOCTYPE html>\n<html>", "is a web page"),
    "a pickle": ("a.json", b"\x80\x04\x95abc", "is a pickle, which is never loaded"),
    "torn gzip": ("a.jsonl.gz", TORN, "damaged or truncated"),
    "empty gzip": ("a.jsonl.gz", gzip.compress(b""), "is empty"),
    "a compressed table": ("a.parquet.gz", gzip.compress(parquet()), "decompress the file first"),
    "several lists": ("a.json", dumped({"train": ROWS, "test": ROWS}), "several lists of rows: 'train', 'test'"),
    "columns of two lengths": ("a.json", dumped({"a": [1], "b": [1, 2]}), "different lengths: 'a' 1, 'b' 2"),
    "a torn object": ("a.json", b'{\n "data": [\n  {"a": 1}', "is not valid JSON"),
    "an unclosed quote": ("a.csv", TABLE + b'"open,y3\n' + b"a,b\n" * 9, "row that starts on line 5 runs to line 14"),
    "a quote closed too late": ("a.csv", TABLE + b'"open,y3\na,b\nc,5"\n', "starts on line 5 runs to line 7"),
    "a quote met by another": ("a.csv", TABLE + b'a,"open\nb,c\n"d",e\n', "starts on line 5 runs to line 7"),
    "no known field": ("a.json", dumped({"text": "a"}, 2), "none of the first 1 rows can be scored. missing_field"),
    "a table named .jsonl": ("a.jsonl", TABLE, "bad_json: line 1: not valid JSON"),
    "blank sides": ("a.csv", b"instruction,response\n ,y\nx,\n", "empty_instruction: line 2.*empty_response: line 3"),
    "an unknown kind": ("a.xlsx", b"PK", "unknown file format '.xlsx'"),
}


def inspect(path: Path) -> None:
    source = open_source(path)
    source.check()
    source.inspect()


@pytest.mark.parametrize("name", REFUSED)
def test_an_unreadable_file_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    file, content, message = REFUSED[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        inspect(tmp_path / file)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (Fields("instrution", "response"), "no field 'instrution'; the row has 'instruction', 'response'"),
        (Fields(id="uid"), "--id-field uid; its fields are 'instruction', 'response'"),
        (Fields(system="rules"), "--system-field rules"),
        (Fields(input="hint"), "--input-field hint"),
        (Fields(preference="rejected"), "no rejected response"),
    ],
)
def test_a_misspelled_field_is_refused(tmp_path: Path, fields: Fields, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / "a.jsonl").check(fields)


def test_rows_with_an_author_and_a_text_are_no_conversation(tmp_path: Path) -> None:
    rows = [{"author": "jane", "title": row["instruction"], "text": row["response"]} for row in ROWS]
    for content in (dumped(rows), dumped(rows, 1)):
        (tmp_path / "a.json").write_bytes(content)
        assert [row.record for row in open_source(tmp_path / "a.json").rows()] == rows


@pytest.mark.parametrize("length", [1, 70_000], ids=["short", "longer than the head"])
@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"question": {"text": "hi"}, "answer": {"text": "yo"}}, Fields("question.text", "answer.text")),
        ({"turns": ["hi", "yo"], "tags": ["a", "b"]}, Fields("turns.0", "turns.1")),
        ({"a": {"text": "hi"}, "b": {"text": "yo"}}, Fields("a.text", "b.text")),
    ],
)
def test_the_only_line_of_a_file_of_lines_is_a_row(
    tmp_path: Path, row: dict[str, Any], fields: Fields, length: int
) -> None:
    row = json.loads(json.dumps(row).replace("yo", "yo" * length))
    for ending in ("jsonl", "ndjson"):
        (tmp_path / f"a.{ending}").write_bytes(dumped(row) + b"\n")
        source = open_source(tmp_path / f"a.{ending}")
        assert [r.record for r in source.rows()] == [row]
        source.check(fields)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(dumped(row)))
    assert [r.record for r in open_source(tmp_path / "a.jsonl.gz").rows()] == [row]


def test_standard_input_can_be_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (LINES, dumped(ROWS, 1), TABLE, parquet(), gzip.compress(LINES)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        source = open_source("-")
        assert (source.name, source.path) == ("-", None)
        assert [row.record for row in source.rows()] == [row.record for row in source.rows()] == ROWS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "-: standard input is empty; pipe the data into it"),
        (b"\x1f\x8b\x08", "-: the .gz data is damaged"),
        (b"%PDF-1.4", "- is a PDF"),
    ],
)
def test_unreadable_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch, content: bytes, words: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(UserError, match=f"^{words}"):
        open_source("-")


LONG = [{"instruction": f"{number:x}" * 99, "response": f"{number:o}" * 99} for number in range(999)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"\n".join(map(dumped, LONG)))[:-99], "-: the .gz data is damaged"),
        (gzip.compress(dumped(LONG))[:-99], "-: the .gz data is damaged"),
        (gzip.compress(b"instruction,response\n" + b"x,y\n" * 99999)[:-9], "-: the .gz data is damaged"),
        (parquet(LONG)[:2000] + bytes(999) + parquet(LONG)[2999:], "- is not a readable parquet file: "),
    ],
)
def test_damage_in_the_rows_of_standard_input_names_it(
    monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    source = open_source("-")
    with pytest.raises(UserError, match=f"^{words}"):
        list(source.rows())


def test_a_folder_of_incompatible_files_is_refused_with_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(LINES)
    (tmp_path / "in" / "b.jsonl").write_text('{"question": "x", "answer": "y"}\n')
    with pytest.raises(UserError, match=r"cast question.*column names don't match"):
        open_source(tmp_path / "in", split="train").inspect()


def test_only_data_sets_have_configurations(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with pytest.raises(UserError, match="leave out --config x"):
        open_source(tmp_path / "a.jsonl", config="x")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="leave out --config x"):
        open_source(tmp_path / "saved", config="x").inspect()


def test_every_format_has_endings_and_a_description() -> None:
    assert all(file_format.endings and file_format.content for file_format in FILE_FORMATS)
    endings = [ending for file_format in FILE_FORMATS for ending in file_format.endings]
    assert len(set(endings)) == len(endings)


def test_a_source_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    source = open_source(tmp_path / "a.jsonl")
    notes = source.check()
    monkeypatch.setattr(source, "rows", None)
    assert source.check(Fields()) is notes
    assert open_source(source) is source

"""Reading: every format gives the same pairs, and every broken row gets a status."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from main_align.data.fields import Fields
from main_align.data.formats.conversion import pair_from_record
from main_align.data.pairs import STATUSES, Pair, Turn
from main_align.data.read import open_source, read_pairs
from main_align.data.sources import json_files
from main_align.errors import UserError

ROWS = [
    {"id": "a", "instruction": "Grüße?", "response": 'Ja,\n"gern".'},
    {"id": "b", "instruction": "zwei", "response": "Zeilen\n\nmehr"},
    {"id": "c", "instruction": "drei", "response": "🙂"},
]


def write(path: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def one(record: object, **fields: str) -> Pair:
    assert isinstance(record, dict)
    return pair_from_record(record, 7, Fields(**fields))


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ".csv"])
def test_every_file_format_gives_the_same_pairs(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"in{ending}")
    found = [(p.id, p.instruction, p.response, p.status) for p in read_pairs(path)]
    assert found == [(r["id"], r["instruction"], r["response"], "ok") for r in ROWS]
    assert open_source(path).inspect().rows == 3


def test_an_empty_side_is_not_ok(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"instruction": "i", "response": " "}, {"instruction": "", "response": "r"}])
    assert [(p.status, p.reason) for p in read_pairs(path)] == [
        ("empty_response", "line 1: the response has no text"),
        ("empty_instruction", "line 2: the instruction has no text"),
    ]


def test_a_saved_data_set_is_read_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    assert [p.id for p in read_pairs(tmp_path / "one")] == ["a", "b", "c"]
    infos = {open_source(tmp_path / "one").inspect() for _ in range(2)}
    assert [s.rows for s in infos] == [3]
    both = datasets.DatasetDict({"train": data, "test": data.select([2])})
    both.save_to_disk(tmp_path / "two")
    assert [p.id for p in read_pairs(tmp_path / "two", split="test")] == ["c"]
    with pytest.raises(UserError, match="train, test"):
        list(read_pairs(tmp_path / "two"))
    with pytest.raises(UserError, match="no splits"):
        list(read_pairs(tmp_path / "one", split="test"))


def test_the_format_of_a_saved_data_set_neither_converts_nor_hides_fields(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"number": n, "prompt": "p", "completion": "c"} for n in range(100)])
    data.with_format("numpy", columns=["number"]).save_to_disk(tmp_path / "saved")
    source = open_source(tmp_path / "saved")
    assert [row.record for row in source.rows()] == data.to_list()
    assert all(type(row.record["number"]) is int for row in source.rows() if row.record)
    assert [row.line for row in source.rows_from(70)] == list(range(71, 101))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "p", "completion": "c", "instruction": "i", "response": "r"}, ("p", "c", ())),
        ({"instruction": "i", "output": "o"}, ("i", "o", ())),
        ({"instruction": "i", "input": "more", "output": "o"}, ("i\nmore", "o", ())),
        ({"instruction": "i", "input": " ", "response": "r"}, ("i", "r", ())),
        ({"prompt": None, "completion": None, "instruction": "i", "output": "o"}, ("i", "o", ())),
        (
            {
                "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            ("u", "a", (Turn("system", "s"),)),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "1"},
                    {"from": "gpt", "value": "2"},
                    {"from": "human", "value": "3"},
                    {"from": "gpt", "value": "4"},
                ]
            },
            ("3", "4", (Turn("user", "1"), Turn("assistant", "2"))),
        ),
    ],
)
def test_record_formats_give_their_pair(record: dict[str, object], expected: tuple[object, ...]) -> None:
    pair = one(record)
    assert (pair.instruction, pair.response, pair.context) == expected
    assert (pair.status, pair.id) == ("ok", "7")


def test_fields_named_by_the_user_take_precedence() -> None:
    record = {"q": "Q", "a": "A", "instruction": "i", "response": "r", "uid": 12}
    pair = one(record, instruction="q", response="a", id="uid")
    assert (pair.id, pair.instruction, pair.response) == ("12", "Q", "A")
    assert one(record, instruction="nope", response="a").status == "missing_field"
    with pytest.raises(UserError, match="both sides"):
        list(read_pairs("x/y", fields=Fields(instruction="q")))


@pytest.mark.parametrize(
    ("record", "status", "reason"),
    [
        ({}, "missing_field", "no fields"),
        ({"text": "t"}, "missing_field", "found 'text'; name the two sides"),
        ({"instruction": "i"}, "missing_field", "'response' is absent"),
        ({"instruction": "i", "response": None}, "missing_field", "'response' is null"),
        ({"instruction": "i", "response": 42}, "missing_field", "'response' is a number, not text"),
        ({"instruction": True, "response": "r"}, "missing_field", "is true/false"),
        ({"instruction": "i", "input": {}, "output": "o"}, "missing_field", "'input' is an object"),
        ({"instruction": "\ud800", "output": "o"}, "bad_encoding", "the instruction"),
        ({"messages": []}, "unsupported_turns", "ends in nothing"),
        ({"messages": "hi"}, "missing_field", "not a list of turns"),
        ({"messages": [{"role": "user", "content": "u"}]}, "unsupported_turns", "ends in user"),
        ({"messages": [{"role": "tool", "content": "u"}]}, "unsupported_turns", "ends in tool"),
        ({"messages": [{"role": "judge", "content": "u"}]}, "unsupported_turns", "role 'judge'"),
        ({"messages": [{"role": "user", "content": [1]}]}, "unsupported_turns", "is a list"),
        ({"prompt": [{"role": "user", "content": "u"}], "completion": []}, "unsupported_turns", ""),
    ],
)
def test_a_record_that_cannot_be_scored_has_a_reason(record: object, status: str, reason: str) -> None:
    pair = one(record)
    assert pair.status == status
    assert pair.reason.startswith("line 7: ")
    assert reason in pair.reason
    assert (pair.instruction, pair.response) == ("", "")


def test_broken_lines_of_jsonl_get_a_status(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = [
        b'\xef\xbb\xbf{"id": "a", "instruction": "i", "response": "r"}\r',
        b"   ",
        b'{"id": "bytes", "instruction": "\xff", "response": "r"}',
        b'{"id": "b", "instruction": "i", "response": "r"} trailing',
        b"[1, 2]",
        b"[" * 100_000,
        b'{"id": "a", "instruction": "second", "response": "r"}',
        b'{"instruction": "no id", "response": "r"}',
        b'{"id": "torn", "instruc',
    ]
    path.write_bytes(b"\n".join(lines))
    pairs = list(read_pairs(path))
    assert [(p.line, p.id, p.status) for p in pairs] == [
        (1, "a", "ok"),
        (3, "bytes", "bad_encoding"),
        (4, "4", "bad_json"),
        (5, "5", "bad_json"),
        (6, "6", "bad_json"),
        (7, "a", "ok"),
        (8, "8", "ok"),
        (9, "9", "bad_json"),
    ]
    assert all(f"line {p.line}" in p.reason for p in pairs if p.status != "ok")
    info = open_source(path).inspect()
    assert (info.rows, info.blank_lines, info.size) == (8, 1, path.stat().st_size)


def test_a_line_number_may_equal_the_id_of_another_row(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"torn\n{"id": 1, "prompt": "p", "completion": "c"}\n{"id": "1", "prompt": "p", "completion": "c"}\n'
    )
    assert [(p.id, p.status) for p in read_pairs(path)] == [
        ("1", "bad_json"),
        ("1", "ok"),
        ("1", "ok"),
    ]


def test_broken_rows_of_csv_get_a_status(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,instruction,response\r\n"
        b'a,"two\nlines",r\n'
        b"b,\xff,r\n"
        b"c,only two\n"
        b"d,i,r,too many\n"
        b"\n"
        b',"i",r\n'
        b'e,"open,r\n'
    )
    pairs = list(read_pairs(path))
    assert [(p.line, p.id, p.status) for p in pairs] == [
        (2, "a", "ok"),
        (4, "b", "bad_encoding"),
        (5, "c", "bad_csv"),
        (6, "d", "bad_csv"),
        (8, "8", "ok"),
        (9, "9", "bad_csv"),
    ]
    assert "3" in pairs[2].reason


def test_parquet_rows_with_invalid_utf8_get_a_status(tmp_path: Path) -> None:
    raw = pa.array([b"ok", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    table = pa.table({"id": ["a", "b", "c"], "instruction": text, "response": ["r"] * 3})
    pq.write_table(table, tmp_path / "in.parquet")
    found = [(p.line, p.status) for p in read_pairs(tmp_path / "in.parquet")]
    assert found == [(1, "ok"), (2, "bad_encoding"), (3, "ok")]


@given(
    st.lists(
        st.recursive(
            st.none() | st.integers() | st.text(max_size=8),
            lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3),
        )
    ),
    st.integers(1, 40),
)
def test_json_arrays_stream_in_chunks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, values: list[object], chunk: int
) -> None:
    path = tmp_path_factory.mktemp("array") / "in.json"
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8", newline="")
    before, json_files.CHUNK = json_files.CHUNK, chunk
    try:
        rows = list(json_files.JsonArray(path).rows())
    finally:
        json_files.CHUNK = before
    assert [r.record for r in rows] == [v if isinstance(v, dict) else None for v in values]


@pytest.mark.parametrize("text", ['[{"a": 1}', '[{"a": 1} {"b": 2}]', "[{}] more", "[{},]", "[,{}]"])
def test_a_malformed_array_raises(tmp_path: Path, text: str) -> None:
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(UserError, match=r"broken after row \d"):
        open_source(tmp_path / "in.json").inspect()


def test_json_lines_named_json_are_read(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert [p.id for p in read_pairs(path)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.jsonl", None, "no such file"),
        ("empty.csv", b"", "is empty"),
        ("notes.txt", b"hello", "unknown file format"),
        ("wide.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("fake.parquet", b"not parquet", "not a readable parquet"),
        ("twice.csv", b"a,a\n1,2\n", "names a twice"),
    ],
)
def test_bad_files_raise_with_a_remedy(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_pairs(tmp_path / name))


def test_every_example_can_be_scored() -> None:
    path = Path(__file__).parents[3] / "examples" / "pairs.jsonl"
    pairs = list(read_pairs(path))
    assert len(pairs) >= 100
    assert {p.status for p in pairs} == {"ok"}
    words = sum(len((p.instruction + " " + p.response).split()) for p in pairs)
    assert words < 6000, "the demo must stay under four minutes"
    assert "ok" in STATUSES

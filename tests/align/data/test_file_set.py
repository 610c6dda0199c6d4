"""Several files as one source."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from main_align.data.read import open_address, open_source, read_pairs
from main_align.data.sources.listing import refuse_output
from main_align.errors import UserError
from main_align.filtering.filter import filter_scores
from main_align.scoring.job import score_file
from main_align.scoring.score_file import score_rows_of

from tests.align.fakes import FakeScorer

ROWS = [{"instruction": f"question {n}", "response": f"answer {n}"} for n in range(10)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "more").mkdir(parents=True)
    lines = [json.dumps(row) for row in ROWS[:3]] + ["no json"]
    (tmp_path / "data" / "a.jsonl").write_text("\n".join(lines) + "\n")
    pq.write_table(pa.Table.from_pylist(ROWS[3:7]), tmp_path / "data" / "b.parquet", row_group_size=2)
    own = [row | {"id": f"own {n}"} for n, row in enumerate(ROWS[7:])]
    (tmp_path / "data" / "more" / "c.json").write_text(json.dumps(own))
    for left_out in ("_notes.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "_old/a.jsonl", ".git/deep/a.jsonl"):
        (tmp_path / "data" / left_out).parent.mkdir(parents=True, exist_ok=True)  # as other tools name what is no data
        (tmp_path / "data" / left_out).write_text(json.dumps(ROWS[0]) + "\n")
    return tmp_path / "data"


def test_a_folder_a_pattern_and_a_list_are_read_as_one_source(folder: Path) -> None:
    files = [folder / "a.jsonl", folder / "b.parquet", folder / "more" / "c.json"]
    for source in (folder, files, [str(file) for file in files], [folder / "a.jsonl", f"{folder}/b*", files[2]]):
        pairs = list(read_pairs(source))
        assert [pair.instruction for pair in pairs] == [f"question {n}" for n in (0, 1, 2)] + [""] + [
            f"question {n}" for n in range(3, 10)
        ]
    assert len(list(read_pairs(f"{folder}/*.parquet"))) == 4


def test_ids_and_messages_name_the_file(folder: Path) -> None:
    pairs = list(read_pairs(folder))
    assert [pair.id for pair in pairs[2:6]] == ["a.jsonl:3", "a.jsonl:4", "b.parquet:1", "b.parquet:2"]
    assert [pair.id for pair in pairs[8:]] == ["own 0", "own 1", "own 2"]
    assert pairs[3].reason.startswith("a.jsonl, line 4: ")
    assert pairs[4].where == "b.parquet, row 1"
    assert len({pair.id for pair in pairs}) == len(pairs)


def test_file_names_that_are_not_unicode_are_escaped(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))  # named on an older system
    (folder / "more").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), tmp_path / "a.parquet")
    pa.feather.write_feather(pa.Table.from_pylist(ROWS[2:4]), tmp_path / "b.arrow", compression="uncompressed")
    (tmp_path / "a.parquet").rename(folder / "a.parquet")
    (tmp_path / "b.arrow").rename(folder / "b.arrow")
    (folder / "more" / os.fsdecode(b"\xe9.jsonl")).write_text(json.dumps(ROWS[4]) + "\nno json\n")
    for ending in ("jsonl", "csv", "parquet"):
        out = tmp_path / f"scores.{ending}"
        score_file(FakeScorer(), folder, out)
        rows = list(score_rows_of(out))
        assert [row["id"] for row in rows[3:]] == ["b.arrow:2", r"more/\udce9.jsonl:1", r"more/\udce9.jsonl:2"]
        assert rows[-1]["reason"].startswith(r"more/\udce9.jsonl, line 2: ")
        filter_scores(out, tmp_path / f"kept.{ending}", keep=1.0)
    assert len(list(read_pairs(open_source(folder / "a.parquet")))) == 2
    with pytest.raises(UserError, match="rename the folder"):
        score_file(FakeScorer(), folder, folder / "scores.csv")


@pytest.mark.parametrize("start", range(12))
def test_rows_from_any_start_are_the_rest_of_all_rows(folder: Path, start: int) -> None:
    source = open_source(folder)
    assert list(source.rows_from(start)) == list(source.rows())[start:]
    for file in ("a.jsonl", "b.parquet"):
        member = open_source(folder / file)
        assert list(member.rows_from(start)) == list(member.rows())[start:]


def test_sizes_and_digest_follow_every_file(folder: Path) -> None:
    source = open_source(folder)
    info = source.inspect()
    assert (info.rows, source.lengths()) == (11, [4, 4, 3])
    assert source.digest() == info.digest
    (folder / "a.jsonl").rename(folder / "z.jsonl")
    assert open_source(folder).digest() != info.digest


def test_an_address_opens_the_same_source_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for name in ("data", "data/a.jsonl"):
        source = open_source(name)
        address = json.loads(json.dumps(source.address()))
        monkeypatch.chdir("/")
        assert list(open_address(address).rows()) == list(open_source(folder.parent / name).rows())
        monkeypatch.chdir(folder.parent)


def test_files_that_are_missing_or_repeated_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"\*\.csv: no file matches"):
        open_source(f"{folder}/*.csv")
    with pytest.raises(UserError, match=r"a\.jsonl is given twice"):
        open_source([folder / "a.jsonl", folder / "more" / ".." / "a.jsonl"])
    with pytest.raises(UserError, match=r"absent\.jsonl: no such file"):
        open_source([folder / "a.jsonl", folder / "absent.jsonl"])
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="empty: the folder holds no file"):
        open_source([folder / "empty"])


@pytest.mark.parametrize(
    ("listing", "inside", "outside"),
    [
        ("data", ["data/s.jsonl", "data/more/s.jsonl", "data/scored"], ["s.jsonl", "data/_s.jsonl", "data/.s/s.jsonl"]),
        ("data/*.jsonl", ["data/s.jsonl", "data/more/../s.jsonl"], ["data/s.parquet", "data/more/s.jsonl"]),
        ("data/**/*.jsonl", ["data/more/s.jsonl"], ["s.jsonl", "data/more/s.csv"]),
        ("data/a.jsonl", ["data/a.jsonl"], ["data/s.jsonl"]),
    ],
)
def test_an_output_is_not_among_the_files_to_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, listing: str, inside: list[str], outside: list[str]
) -> None:
    """Else a second run would read its scores, or it would overwrite its input."""
    monkeypatch.chdir(folder.parent)
    for item in (listing, [listing, "data/b.parquet"] if listing != "data" else ["data"]):
        source = open_source(item)
        for name in inside:
            with pytest.raises(UserError, match=r"read as data the next time|overwrite its own input"):
                refuse_output(source, Path(name))
        for name in outside:
            refuse_output(source, Path(name))

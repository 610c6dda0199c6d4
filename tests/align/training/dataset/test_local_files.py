"""Files as data sets: the formats and types that main-align score reads, splits of folders, and streams."""

from __future__ import annotations

import gzip
import json

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from datasets import Dataset, DatasetDict
from main_align.data.read import open_source, read_pairs
from main_align.errors import UserError
from main_align.training.dataset.local_files import as_dataset
from main_align.training.sft import load_pairs

from tests.align.training.dataset.readers import read, reader

PAIRS = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}."} for n in range(3)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(autouse=True)
def no_hub_and_an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.jsonl", lines(PAIRS).encode()),
        ("pairs.jsonl.gz", gzip.compress(lines(PAIRS).encode())),
        ("pairs.json", json.dumps({"data": PAIRS}).encode()),
        ("pairs.tsv", b"prompt\tcompletion\n" + "\n".join("\t".join(p.values()) for p in PAIRS).encode()),
    ],
    ids=["jsonl", "gz", "json", "tsv"],  # bytes would be in the ids, and gzip's have the time
)
def test_files_are_read_as_score_reads_them(tmp_path, name, content, streaming):
    path = tmp_path / name
    path.write_bytes(content)
    assert list(load_pairs(str(path), streaming=streaming)) == PAIRS
    assert [pair.status for pair in read_pairs(path)] == ["ok"] * 3


def test_cells_of_a_table_are_text(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,completion,synthetic\nWhich value is missing?,None,True\nWhat is 3 plus 4?,7,\n")
    data = load_pairs(str(path))
    assert data["completion"] == ["None", "7"]
    assert read(list(data))["synthetic"] == [True, False]
    path.write_text("prompt,completion,aligned\nName a prime.,Nine.,False\n")
    with pytest.raises(UserError, match="its column 'aligned' is false"):
        read(list(load_pairs(str(path))))


def test_rows_may_differ_in_fields_and_types(tmp_path):
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}, turns[1]]
    rows = [{"messages": turns, "n": 1}] * 1000 + [{"messages": parts, "n": "one", "late": 2**70}]
    path = tmp_path / "chats.jsonl"
    path.write_text(lines(rows))
    data = load_pairs(str(path))
    assert (data[-1]["n"], data[-1]["late"], data[0]["late"]) == ("one", str(2**70), None)
    prepared = reader().prepare(data, "training")
    assert prepared[0]["x_ids"] == prepared[-1]["x_ids"]


def test_a_folder_is_divided_by_the_names_of_its_files(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text("notes")
    with pytest.raises(UserError, match="holds no file of rows"):
        load_pairs(str(folder))
    (folder / "a.jsonl").write_text(lines(PAIRS[:1]))
    (folder / "b.csv").write_text("prompt,completion\nHi?,7\n")
    assert len(load_pairs(str(folder))) == 2
    assert len(load_pairs(str(tmp_path / "folder" / "*.jsonl"))) == 1
    with pytest.raises(UserError, match="has no split 'test', but 'train'"):
        load_pairs(str(folder), split="test")
    for file in ("a.jsonl", "b.csv"):
        (folder / file).unlink()
    (folder / "train.jsonl").write_text(lines(PAIRS))
    (folder / "test.jsonl").write_text(lines(PAIRS[:1]))
    assert [len(load_pairs(str(folder), split=split)) for split in ("train", "test")] == [3, 1]
    stream = load_pairs(str(folder), streaming=True)
    assert stream.num_shards == 1
    assert len(reader().prepare(load_pairs(str(folder)), "training")) == len(list(stream))


def test_saved_folders_are_loaded_as_they_are(tmp_path):
    data = Dataset.from_list(PAIRS)
    data.save_to_disk(str(tmp_path / "one"))
    DatasetDict(train=data, test=data.select([0])).save_to_disk(str(tmp_path / "two"))
    assert list(load_pairs(str(tmp_path / "one"))) == PAIRS
    assert len(load_pairs(str(tmp_path / "two"), split="test")) == 1


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "pairs.jsonl"
    for pairs in (PAIRS, PAIRS[:2]):
        path.write_text(lines(pairs))
        assert list(load_pairs(str(path))) == pairs


@pytest.mark.parametrize(
    ("source", "config", "message"),
    [
        ("nosuch.jsonl", None, "nosuch.jsonl: no such file"),
        ("./nosuch", None, "nosuch: no such file"),
        ("no/such/folder", None, "no such file"),
        ("nosuch/*.jsonl", None, "no file matches this pattern"),
        ("-", None, "standard input is read only once"),
        ("FILE", "en", "no configurations: leave out 'en'"),
        ("SAVED", "en", "no configurations: leave out 'en'"),
        ("no-such-owner/no-such-set", None, "the data set cannot be loaded"),
    ],
)
def test_what_cannot_be_loaded_is_an_error_with_a_remedy(tmp_path, source, config, message):
    (tmp_path / "pairs.jsonl").write_text(lines(PAIRS))
    Dataset.from_list(PAIRS).save_to_disk(str(tmp_path / "saved"))
    places = {"FILE": str(tmp_path / "pairs.jsonl"), "SAVED": str(tmp_path / "saved")}
    with pytest.raises(UserError, match=message):
        load_pairs(places.get(source, source), config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "compl\n', "bad.jsonl: line 2: not valid JSON"),
        ('{"prompt": "a", "completion": "\\ud800"}\n', "'completion' is not valid Unicode"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        as_dataset(open_source(path), streaming=False)
    if "line 2" in message:
        with pytest.raises(UserError, match=message):
            list(as_dataset(open_source(path), streaming=True))

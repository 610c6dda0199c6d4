"""The journal: appended records can be read, and a torn tail is removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from main_align.data.journal import Journal
from main_align.errors import UserError


def fill(path: Path, count: int = 3) -> None:
    with Journal(path) as journal:
        for n in range(count):
            tensors = {"a": np.arange(n + 1.0), "b": np.ones((2, 3), np.float32)} if n else None
            journal.append({"n": n, "text": "ü"}, tensors)


def test_appended_records_can_be_read(tmp_path: Path) -> None:
    fill(tmp_path / "j")
    with Journal(tmp_path / "j") as journal:
        records = list(journal.records())
        assert list(journal.headers()) == [header for header, _ in records]
    assert [header for header, _ in records] == [{"n": n, "text": "ü"} for n in range(3)]
    assert records[0][1] == {}
    np.testing.assert_array_equal(records[2][1]["a"], np.arange(3.0))
    assert records[2][1]["b"].dtype == np.float32


def test_a_transposed_array_keeps_its_values(tmp_path: Path) -> None:
    array = np.arange(6).reshape(3, 2).T
    with Journal(tmp_path / "j") as journal:
        journal.append({}, {"a": array, "row": array[:, 1]})
        ((_, tensors),) = journal.records()
    np.testing.assert_array_equal(tensors["a"], array)
    np.testing.assert_array_equal(tensors["row"], array[:, 1])


def test_every_torn_tail_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "j"
    fill(path, 2)
    two = path.read_bytes()
    path.unlink()
    fill(path, 3)
    three = path.read_bytes()
    assert three.startswith(two)
    for length in range(len(two), len(three)):
        path.write_bytes(three[:length])
        with Journal(path) as journal:
            assert [h["n"] for h in journal.headers()] == [0, 1]
        assert path.read_bytes() == two


@pytest.mark.parametrize("tail", [b"\0" * 64, b"\xff" * 64, b"x"])
def test_garbage_after_the_last_record_is_removed(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "j"
    fill(path)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with Journal(path) as journal:
        journal.append({"n": 3})
    with Journal(path) as journal:
        assert [h["n"] for h in journal.headers()] == [0, 1, 2, 3]


def test_records_from_a_flipped_bit_on_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "j"
    fill(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with Journal(path) as journal:
        assert [h["n"] for h in journal.headers()] == [0, 1]


def test_two_processes_cannot_write_one_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(UserError, match="another main-align"):
        Journal(tmp_path / "j")

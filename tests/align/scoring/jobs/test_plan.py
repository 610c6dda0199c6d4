"""The units of a job and the reading of their pairs."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from main_align.data.fields import NO_FIELDS
from main_align.data.read import open_source
from main_align.errors import UserError
from main_align.scoring.jobs import plan, reader
from main_align.scoring.jobs.plan import JobPlan
from main_align.scoring.jobs.reader import PairReader
from main_align.scoring.jobs.shard import Shard
from main_align.scoring.jobs.worker_process import load

lengths = st.lists(st.integers(0, 60), max_size=6)


@given(lengths, st.integers(1, 25), st.integers(1, 50))
def test_units_hold_every_row_once_and_cross_no_file(lengths: list[int], sort_window: int, bank: int) -> None:
    job = JobPlan(lengths, sort_window, bank, seed=0)
    assert list(chain(*job.units)) == list(range(sum(lengths)))
    ends = set(np.cumsum([0, *lengths]).tolist())
    for unit in job.units:
        assert 0 < len(unit) <= sort_window
        assert not ends & set(range(unit.start + 1, unit.stop))


@given(lengths, st.integers(1, 25), st.integers(1, 50))
def test_bank_units_hold_every_candidate_once_in_order(lengths: list[int], sort_window: int, bank: int) -> None:
    job = JobPlan(lengths, sort_window, bank, seed=0)
    rows = [row for unit in job.bank_units for row in unit.tolist()]
    assert rows == sorted(job.candidates.tolist())
    assert all(len(unit) <= min(plan.BANK_UNIT, sort_window) for unit in job.bank_units)
    assert [row for unit in job.units for row in (unit.start + place for place in job.candidates_in(unit))] == rows


@given(st.integers(0, 40), st.integers(1, 9))
def test_shards_share_out_every_unit(units: int, count: int) -> None:
    shards = [Shard(index, count) for index in range(count)]
    assert list(chain(*(shard.of(range(units)) for shard in shards))) == list(range(units))
    for shard in shards:
        assert sorted(shard.first(range(units))) == list(range(units))
        assert list(shard.first(range(units)))[: len(shard.of(range(units)))] == list(shard.of(range(units)))


@pytest.mark.parametrize("text", ["3", "3/", "/3", "3/3", "-1/2", "a/b", "1/2/3", ""])
def test_a_wrong_shard_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="i/n"):
        Shard.parse(text)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_pairs_can_be_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(reader, "JUMP", 7)
    records = [{"instruction": f"q{n}", "response": "a"} for n in range(50)]
    path = tmp_path / f"in{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=9)
    pairs = PairReader(open_source(path), NO_FIELDS)
    for rows in ([0, 1, 2], [3, 9], [30, 31, 49], [5], range(40, 50), []):
        assert [pair.instruction for pair in pairs.read(rows)] == [f"q{row}" for row in rows]
        assert [pair.line for pair in pairs.read(rows)] == [row + 1 for row in rows]


def test_a_job_reads_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"q{n}", "response": "a"}) + "\n" for n in range(50)))
    source = open_source(path)
    opened, rows_from = [], source.rows_from
    monkeypatch.setattr(source, "rows_from", lambda start: opened.append(start) or rows_from(start))
    pairs = PairReader(source, NO_FIELDS)
    for start in range(0, 50, 10):
        pairs.read(range(start, start + 5))
    assert opened == [0]


def test_only_the_first_worker_logs_warnings_about_the_model(caplog: pytest.LogCaptureFixture) -> None:
    for index in range(3):
        load({"class": "tests.align.fakes:scorer_with_a_warning"}, index)
    assert [record.getMessage() for record in caplog.records] == ["the model has a peculiarity"]

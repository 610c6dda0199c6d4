"""Jobs that write a folder: parts, shards, workers, merge, and what a kill at any moment leaves."""

from __future__ import annotations

import gc
import io
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from main_align.data.fields import NO_FIELDS
from main_align.data.journal import Journal
from main_align.data.read import open_source
from main_align.errors import UserError
from main_align.filtering.filter import filter_scores
from main_align.progress import Progress
from main_align.reporting.files import open_scores
from main_align.scoring import bank, job
from main_align.scoring.job import score_file
from main_align.scoring.jobs.engine import JobSpec
from main_align.scoring.jobs.folder import JobFolder
from main_align.scoring.jobs.shard import Shard
from main_align.scoring.jobs.worker_process import serve
from main_align.scoring.manifest import read_manifest
from main_align.scoring.merge import merge_scores
from main_align.scoring.score_file import score_rows_of

from tests.align.fakes import FakeScorer

FAKE = {"class": "tests.align.fakes:FakeScorer", "bank": 4}


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_data(tmp_path)


def write_data(tmp_path: Path) -> str:
    """Write three files, 110 rows: 68 are candidates for a bank of 4; some cannot be read or scored."""
    (tmp_path / "data").mkdir()
    for file, count in enumerate((50, 7, 53)):
        rows = [{"instruction": f"say {n % 7} {file}", "response": f"word {n}"} for n in range(count)]
        rows[3]["instruction"] = "explode"
        rows[4]["response"] = ""
        lines = [json.dumps(row) for row in rows]
        lines[5] = '{"instruction": '
        (tmp_path / "data" / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    return f"{tmp_path}/data/*.jsonl"


def scored(out: Path, data: str, scorer: Any = None, **options: Any) -> dict[str, Any]:
    return score_file(scorer or FakeScorer(bank=4), data, out, sort_window=6, **options)


def contents(out: Path) -> dict[str, bytes]:
    """The bytes of everything that the scores consist of."""
    assert not (out / "work").exists()
    return {path.name: path.read_bytes() for path in [*sorted((out / "parts").iterdir()), out / "bank.safetensors"]}


def test_the_parts_merged_are_the_file_that_one_job_writes(tmp_path: Path, data: str) -> None:
    many = scored(tmp_path / "scored", data)
    for ending in (".parquet", ".jsonl", ".csv"):
        whole, merged = tmp_path / f"whole{ending}", tmp_path / f"merged{ending}"
        one = scored(whole, data)
        merge_scores(tmp_path / "scored", merged)
        assert merged.read_bytes() == whole.read_bytes()
        assert read_manifest(merged) == many
        for name in ("counts", "first_reasons", "bank", "rows", "settings", "source_path", "repeated_ids"):
            assert one[name] == many[name], name
    assert many["counts"] == {"ok": 101, "non_finite": 3, "empty_response": 3, "bad_json": 3}
    assert many["bank"] == {"pairs": 4, "of_scored": 101, "seed": 0}
    ids = [row["id"] for row in score_rows_of(tmp_path / "scored")]
    assert (ids[0], ids[50], len(set(ids))) == ("0.jsonl:1", "1.jsonl:1", 110)


@pytest.mark.parametrize("stage", ["manifest", "scores"])
def test_a_merge_that_was_killed_runs_again(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    scored(tmp_path / "scored", data)
    merged = tmp_path / "merged.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", partial(_interrupted, os.replace, merged, stage))
        with pytest.raises(KeyboardInterrupt):
            merge_scores(tmp_path / "scored", merged)
    assert not merged.exists()
    merge_scores(tmp_path / "scored", merged)
    assert read_manifest(merged) is not None
    with pytest.raises(UserError, match=r"merged\.jsonl exists"):
        merge_scores(tmp_path / "scored", merged)


def _interrupted(replace: Callable[..., None], merged: Path, stage: str, before: Path, after: Path) -> None:
    """Rename a file, but interrupt after the manifest or before the scores of `merged`."""
    if after == merged and stage == "scores":
        raise KeyboardInterrupt
    replace(before, after)
    if after != merged and stage == "manifest":
        raise KeyboardInterrupt


def test_a_folder_to_merge_must_exist(tmp_path: Path) -> None:
    for name in ("none", "scores.parquet"):
        with pytest.raises(UserError, match=f"{name}: no such folder; give the output folder of main-align score"):
            merge_scores(tmp_path / name, tmp_path / "o.parquet")


def test_a_filter_does_not_overwrite_a_part_that_it_reads(tmp_path: Path, data: str) -> None:
    scored(out := tmp_path / "scored", data)
    before = contents(out)
    with pytest.raises(UserError, match="would overwrite its own input"):
        filter_scores(out, out / "parts" / "part-000000.parquet", keep=0.5, scores_only=True)
    assert contents(out) == before


def test_a_restart_that_will_be_refused_deletes_nothing(tmp_path: Path, data: str) -> None:
    scored(out := tmp_path / "scored", data)
    before = contents(out)
    (out / "best.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"holds best.jsonl, which is not of a job; move it"):
        scored(out, data, restart=True)
    assert contents(out) == before


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_in_any_order_give_the_same_bytes(tmp_path: Path, data: str, count: int) -> None:
    scored(tmp_path / "whole", data)
    shards = [Shard(index, count) for index in range(count)]
    scorers = [FakeScorer(bank=4) for _ in shards]
    ends = [
        scored(tmp_path / "scored", data, scorer, shard=shard)
        for shard, scorer in zip([*shards[1:], shards[0]], scorers, strict=True)
    ]
    assert all(0 < end["missing_parts"] < end["parts"] for end in ends[:-1])
    assert ends[-1]["counts"]["ok"] == 101
    assert contents(tmp_path / "scored") == contents(tmp_path / "whole")
    alone = FakeScorer(bank=4)
    scored(tmp_path / "again", data, alone)
    assert sum(scorer.ran for scorer in scorers) == alone.ran


def test_three_workers_give_the_same_bytes(tmp_path: Path, data: str) -> None:
    seen: list[Progress] = []
    scored(tmp_path / "whole", data)
    manifest = scored(tmp_path / "scored", data, FAKE, workers=3, on_progress=seen.append)
    assert manifest["counts"]["ok"] == 101
    assert contents(tmp_path / "scored") == contents(tmp_path / "whole")
    assert (seen[-1].pairs, seen[-1].total) == (110, 110)


def test_the_next_unit_is_prepared_while_a_gpu_works(tmp_path: Path, data: str) -> None:
    scored(tmp_path / "whole", data, idle := FakeScorer(bank=4))
    scored(tmp_path / "scored", data, busy := FakeScorer(bank=4, waits=True))
    assert contents(tmp_path / "scored") == contents(tmp_path / "whole")
    ahead = [ran < alone for ran, alone in zip(busy.prepared, idle.prepared, strict=True)]
    assert sum(ahead) >= len(ahead) - 3  # the first unit of each stage, and units without a pack before them
    scored(tmp_path / "again", data, FAKE | {"waits": True}, workers=2)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_a_worker_that_is_killed_costs_only_its_unfinished_pairs(tmp_path: Path, data: str) -> None:
    said: list[str] = []
    seen: list[Progress] = []
    scored(tmp_path / "whole", data)
    (tmp_path / "dies").touch()
    mortal = FAKE | {"dies": str(tmp_path / "dies")}
    scored(tmp_path / "scored", data, mortal, workers=2, log=said.append, on_progress=seen.append)
    assert contents(tmp_path / "scored") == contents(tmp_path / "whole")
    assert len(said) == 1
    assert "a worker died (signal 9)" in said[0]
    assert seen[-1].pairs == 110


def test_when_no_worker_is_left_the_job_says_so_and_resumes(tmp_path: Path, data: str) -> None:
    (tmp_path / "dies").touch()
    mortal = FAKE | {"dies": str(tmp_path / "dies")}
    with pytest.raises(UserError, match=r"no worker is left.*run again to resume"):
        scored_alone(tmp_path / "scored", data, mortal)
    scored(tmp_path / "whole", data)
    scored(tmp_path / "scored", data)
    assert contents(tmp_path / "scored") == contents(tmp_path / "whole")


def scored_alone(out: Path, data: str, settings: dict[str, Any]) -> None:
    from main_align.scoring.job import run_job
    from main_align.scoring.jobs.processes import Processes

    run_job(Processes(1, settings, print), data, out, sort_window=6)


class Killed(BaseException):
    pass


@contextmanager
def killed_before_write(number: int) -> Iterator[Callable[[], int]]:
    """Raise Killed before write `number`: an append, a rename or a deletion. Yields the count of writes so far."""
    writes = 0
    patched = [(Journal, "append"), (os, "replace"), (os, "unlink")]
    originals = [getattr(owner, name) for owner, name in patched]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal writes
            writes += 1
            if writes == number:
                raise Killed
            return original(*args, **kwargs)

        return call

    try:
        for (owner, name), original in zip(patched, originals, strict=True):
            setattr(owner, name, counted(original))
        yield lambda: writes
    finally:
        for (owner, name), original in zip(patched, originals, strict=True):
            setattr(owner, name, original)


@pytest.mark.parametrize(("name", "first"), [("scored", 4), ("scores.parquet", 1)])
def test_a_kill_before_any_write_loses_and_doubles_nothing(tmp_path: Path, data: str, name: str, first: int) -> None:
    with killed_before_write(-1) as count:
        scored(tmp_path / name, data)
    wanted, out = (contents, tmp_path / "out") if name == "scored" else (Path.read_bytes, tmp_path / "out.parquet")
    whole = wanted(tmp_path / name)
    assert count() > 50
    numbers = range(first, count() + 1, 41)  # every number passes, in two minutes
    for number in numbers:
        with killed_before_write(number), pytest.raises(Killed):
            scored(out, data, restart=number > first)
        assert scored(out, data)["counts"]["ok"] == 101, number
        assert wanted(out) == whole, number
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_resumed_job_does_not_run_finished_units_again(tmp_path: Path, data: str) -> None:
    alone, first, second = (FakeScorer(bank=4) for _ in range(3))
    scored(tmp_path / "whole", data, alone)
    finished = 0

    def stop(progress: Progress) -> None:
        nonlocal finished
        finished += progress.stage == "scoring"
        if finished == 25:
            raise Killed

    with pytest.raises(Killed):
        scored(tmp_path / "scored", data, first, on_progress=stop)
    manifest = scored(tmp_path / "scored", data, second)
    assert first.ran + second.ran == alone.ran
    assert manifest["throughput"]["pairs_from_earlier_runs"] > 50


def test_two_jobs_in_one_folder_refuse_each_other(tmp_path: Path, data: str) -> None:
    def again(progress: Progress) -> None:
        with pytest.raises(UserError, match="another main-align is writing this output"):
            scored(tmp_path / "scored", data)
        raise Killed

    with pytest.raises(Killed):
        scored(tmp_path / "scored", data, on_progress=again)


def test_a_full_disk_is_an_error_and_the_job_resumes(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, append = 0, Journal.append

    def full(self: Journal, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise OSError(28, "No space left on device")
        append(self, *args)

    scored(tmp_path / "whole", data)
    monkeypatch.setattr(Journal, "append", full)
    with pytest.raises(OSError, match="No space left"):
        scored(tmp_path / "scored", data)
    scored(tmp_path / "scored", data)
    assert contents(tmp_path / "scored") == contents(tmp_path / "whole")


def test_a_full_disk_in_a_worker_process_is_the_commands_error(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "append", full)
    JobFolder(tmp_path / "scored").create()
    spec = JobSpec(open_source(data).address(), asdict(NO_FIELDS), [50, 7, 53], 6, str(tmp_path / "scored"), "all")
    messages = [{"settings": FAKE, "index": 0}, {"job": spec.as_json()}, {"tasks": [["measure", 0], None]}]
    answers = io.StringIO()
    serve(io.StringIO("".join(json.dumps(message) + "\n" for message in messages)), answers)
    found = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert found[0]["fingerprint"]["model"] == "fake"
    assert "No space left on device. Check the path, its permissions and the free disk space" in found[-1]["error"]


def test_changed_files_and_settings_are_refused_by_name(tmp_path: Path, data: str) -> None:
    out, file = tmp_path / "scored", tmp_path / "data" / "1.jsonl"
    scored(out, data)
    with pytest.raises(UserError, match=r"scorer\.bank was 4, now 5.*--restart"):
        scored(out, data, FakeScorer(bank=5))
    file.write_text(file.read_text().replace("word 1", "word x"))
    with pytest.raises(UserError, match=r"input\.files\.1\.jsonl\.digest was"):
        scored(out, data)
    (tmp_path / "data" / "3.jsonl").write_text(file.read_text())
    with pytest.raises(UserError, match=r"input\.files\.3\.jsonl was None"):
        scored(out, data)
    assert scored(out, data, restart=True)["rows"] == 117


def test_a_shard_may_end_while_another_deletes_the_work(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(tmp_path / "scored", data, shard=Shard(0, 2))
    manifest_of = job._manifest

    def late(*args: Any) -> dict[str, Any]:
        monkeypatch.setattr(job, "_manifest", manifest_of)
        return scored(tmp_path / "scored", data, shard=Shard(0, 2))  # it finds all parts, and finishes the job

    monkeypatch.setattr(job, "_manifest", late)
    assert scored(tmp_path / "scored", data, shard=Shard(1, 2))["counts"]["ok"] == 101
    assert read_manifest(tmp_path / "scored")["rows"] == 110


def test_a_folder_of_other_files_is_not_touched(tmp_path: Path, data: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for restart in (False, True):
        with pytest.raises(UserError, match=r"holds thesis\.txt, which is not of a job"):
            scored(tmp_path / "mine", data, restart=restart)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    (tmp_path / "other" / "parts").mkdir(parents=True)
    with pytest.raises(UserError, match="holds parts, which is not of a job"):
        scored(tmp_path / "other", data, restart=True)
    with pytest.raises(UserError, match=r"the folder .* does not exist"):
        scored(tmp_path / "absent" / "scored", data)


def test_shards_need_a_folder_and_several_workers_their_own_models(tmp_path: Path, data: str) -> None:
    with pytest.raises(UserError, match="a shard writes parts"):
        scored(tmp_path / "o.parquet", data, shard=Shard(0, 2))
    with pytest.raises(UserError, match="not a Scorer"):
        scored(tmp_path / "scored", data, workers=2)


def test_an_input_is_refused_before_a_model_is_loaded(tmp_path: Path, data: str) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    absent = {"model": str(tmp_path / "no model")}
    for source, out, what in (
        (tmp_path / "bad.jsonl", "scored", "none of the first 1 rows can be scored"),
        (tmp_path / "none.jsonl", "scored", "no such file"),
        (data, "scores.txt", "the ending selects the format"),
    ):
        for workers in (1, 2):
            with pytest.raises(UserError, match=what):
                score_file(absent, source, tmp_path / out, workers=workers)
    with pytest.raises(UserError, match="no model"):
        score_file(absent, data, tmp_path / "scored")


def test_filter_and_report_read_the_folder(tmp_path: Path, data: str) -> None:
    scored(tmp_path / "scored", data)
    scored(tmp_path / "whole.parquet", data)
    kept = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for scores, out in zip(("scored", "whole.parquet"), kept, strict=True):
        assert filter_scores(tmp_path / scores, out, keep=0.5).kept.sum() == 51
    assert kept[0].read_bytes() == kept[1].read_bytes()
    found = open_scores(tmp_path / "scored", None, needs_input=True)
    assert (found.table.rows, len(list(found.joined()))) == (110, 110)
    assert [pair.instruction for pair, _ in found.pick([0, 64])] == ["say 0 0", "say 0 2"]


def test_an_incomplete_folder_is_refused_by_its_readers(tmp_path: Path, data: str) -> None:
    scored(tmp_path / "scored", data, shard=Shard(0, 2))
    for read in (lambda: merge_scores(tmp_path / "scored", tmp_path / "o.parquet"),
                 lambda: filter_scores(tmp_path / "scored", tmp_path / "o.jsonl", keep=0.5)):  # fmt: skip
        with pytest.raises(UserError, match=r"is not complete; run its main-align score again, with every shard"):
            read()
    (tmp_path / "plain").mkdir()
    with pytest.raises(UserError, match="did not write"):
        merge_scores(tmp_path / "plain", tmp_path / "o.parquet")


@pytest.mark.parametrize("change", ["lost", "added", "cut"])
def test_parts_that_are_lost_or_added_are_noticed(tmp_path: Path, data: str, change: str) -> None:
    scored(out := tmp_path / "scored", data)
    part, *_, last = sorted((out / "parts").iterdir())
    if change == "lost":
        last.unlink()
    elif change == "added":
        part.with_name("part-000099.parquet").write_bytes(part.read_bytes())
    else:
        part.write_bytes(part.read_bytes()[:99])
    message = "parts were lost or added; score again" if change != "cut" else r"part-000000\.parquet is damaged"
    with pytest.raises(UserError, match=message):
        merge_scores(out, tmp_path / "merged.jsonl")
    with pytest.raises(UserError, match=message):
        scored(out, data)
    scored(out, data, restart=True)
    assert merge_scores(out, tmp_path / "merged.jsonl")["rows"] == 110


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("parts/part-000000.parquet", "part-000000.parquet is damaged .*; delete it and run again"),
        ("work/candidates.journal", "candidates.journal is damaged .*; start over with --restart"),
        ("bank.safetensors", "bank.safetensors is damaged"),
    ],
)
def test_damaged_work_is_named(tmp_path: Path, data: str, name: str, message: str) -> None:
    scored(out := tmp_path / "scored", data, shard=Shard(0, 2))
    (out / name).write_bytes((out / name).read_bytes()[:30])
    with pytest.raises(UserError, match=message):
        scored(out, data, shard=Shard(1, 2))


def test_a_lost_bank_is_no_bank_of_no_pairs(tmp_path: Path, data: str) -> None:
    scored(out := tmp_path / "scored", data, shard=Shard(0, 2))
    (out / "bank.safetensors").unlink()
    with pytest.raises(UserError, match=r"bank\.safetensors was made and is gone"):
        scored(out, data, shard=Shard(1, 2))


def test_the_disk_use_of_a_pair_does_not_depend_on_the_width(tmp_path: Path) -> None:
    """Journals and parts stay below 300 bytes a pair; embeddings of the bank's pairs are deleted with the bank made."""
    path = tmp_path / "in.jsonl"
    rows = ({"id": f"row {n}", "instruction": f"say {n}", "response": f"word {n}"} for n in range(600))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    largest = {}
    for width in (8, 4096):
        out, sizes = tmp_path / f"scored-{width}", []

        def watch(progress: Progress, out: Path = out, sizes: list[int] = sizes) -> None:
            if progress.stage == "scoring" and not (out / "work" / "bank").exists():
                files = [file for file in [*(out / "work").rglob("*"), *(out / "parts").iterdir()] if file.is_file()]
                sizes.append(sum(file.stat().st_size for file in files) - 8192 * len(list((out / "parts").iterdir())))

        scorer = FakeScorer(bank=4)
        scorer.width = width
        score_file(scorer, path, out, sort_window=100, on_progress=watch)
        largest[width] = max(sizes)
    assert largest[8] == largest[4096]
    assert largest[8] < 300 * 600


def test_the_memory_of_a_worker_does_not_depend_on_the_number_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank, "HASHED_AT_A_TIME", 64)  # of 2^20 rows
    peaks = {}
    for count in (50, 200, 800):  # the first warms up
        path, peak = tmp_path / f"{count}.jsonl", [0]
        rows = ({"instruction": f"say {n}", "response": f"word {n}"} for n in range(count))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

        def watch(progress: Progress, peak: list[int] = peak) -> None:
            gc.collect()  # garbage that waits for a collection is no need
            peak[0] = max(peak[0], tracemalloc.get_traced_memory()[0]) if progress.stage == "scoring" else peak[0]

        gc.collect()
        tracemalloc.start()
        score_file(
            FakeScorer(bank=4, per_pack=16), path, tmp_path / f"scored-{count}", sort_window=50, on_progress=watch
        )
        tracemalloc.stop()
        peaks[count] = peak[0]
    assert peaks[800] - peaks[200] < 40 * 600, "40 bytes a row; the texts of a row alone take more"

"""The bulk job: what it writes, what it resumes, what it refuses, and that kills change nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from main_align.data.fields import Fields
from main_align.errors import UserError
from main_align.filtering.filter import find_input
from main_align.progress import Progress
from main_align.scoring.columns import COLUMNS
from main_align.scoring.job import score_file
from main_align.scoring.jobs import worker
from main_align.scoring.manifest import manifest_path
from main_align.scoring.resume import partial_folder

from tests.align import forked
from tests.align.fakes import FakeScorer
from tests.align.scoring import run_and_kill
from tests.align.tiny_models import cpu_only, tiny_model_folder


def write_pairs(path: Path, count: int = 23) -> Path:
    lines = [
        json.dumps({"id": f"r{n}", "instruction": "say " + "x" * (n % 7), "response": f"word {n}"})
        for n in range(count)
    ]
    lines[5] = '{"id": "r5", "instruction": '
    lines[8] = json.dumps({"id": "r8", "instruction": "explode", "response": "now"})
    lines[11] = json.dumps({"id": "r2", "instruction": "again", "response": "the same id"})
    lines[13] = json.dumps({"id": "r13", "instruction": "why", "response": ""})
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(autouse=True)
def short_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals get the result of each pack by itself."""
    monkeypatch.setattr(worker, "JOURNAL_PAIRS", 1)


class Killed(Exception):
    pass


def killed_after(packs: int):
    def watch(progress: Progress) -> None:
        watch.left -= progress.stage == "scoring"
        if watch.left == 0:
            raise Killed

    watch.left = packs
    return watch


def test_rows_keep_the_input_order_with_statuses_and_nulls(tmp_path: Path) -> None:
    source, out = write_pairs(tmp_path / "in.jsonl"), tmp_path / "out.parquet"
    manifest = score_file(FakeScorer(), source, out, sort_window=6)
    rows = pq.read_table(out).to_pylist()
    assert list(rows[0]) == list(COLUMNS)
    ids = [f"r{n}" for n in range(23)]
    ids[5], ids[11] = "6", "r2"
    assert [row["id"] for row in rows] == ids
    bad = {5: "bad_json", 8: "non_finite", 13: "empty_response"}
    for number, row in enumerate(rows):
        assert row["status"] == bad.get(number, "ok")
        numbers = [row[name] for name in COLUMNS if name not in ("id", "status", "reason")]
        if number in bad:
            assert f"line {number + 1}" in row["reason"]
            assert numbers == [None] * len(numbers)
        else:
            assert row["semantic"] is not None
            assert row["nll_y"] > 0
    assert manifest["counts"]["ok"] == 20
    assert manifest["first_reasons"].keys() == set(bad.values())
    assert manifest["repeated_ids"] == 1
    assert manifest["bank"] == {"pairs": 20, "of_scored": 20, "seed": 0}
    assert not partial_folder(out).exists()
    assert json.loads(manifest_path(out).read_text()) == manifest


def test_windows_and_micro_batches_do_not_change_the_scores(tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "in.jsonl")
    score_file(FakeScorer(), source, tmp_path / "a.parquet", sort_window=4)
    score_file(FakeScorer(per_pack=5), source, tmp_path / "b.parquet", sort_window=1000)
    a, b = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in "ab")
    for left, right in zip(a, b, strict=True):
        for name in COLUMNS:
            assert left[name] == pytest.approx(right[name], abs=1e-5), name


def test_a_bank_smaller_than_the_data_is_sampled_across_windows(tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "in.jsonl")
    outs = {size: tmp_path / f"{size}.parquet" for size in (4, 5)}
    for size, out in outs.items():
        manifest = score_file(FakeScorer(bank=size), source, out, sort_window=6)
        assert manifest["bank"] == {"pairs": size, "of_scored": 20, "seed": 0}
    whole = tmp_path / "whole.parquet"
    score_file(FakeScorer(bank=5), source, whole, sort_window=1000)
    for name in ("semantic", "structural"):
        expected = pq.read_table(whole)[name].to_pylist()
        assert pq.read_table(outs[5])[name].to_pylist() == pytest.approx(expected, abs=1e-5)
    semantic = [pq.read_table(out)["semantic"].to_pylist() for out in outs.values()]
    assert semantic[0] != semantic[1]
    assert sum(value is not None for value in semantic[0]) == 20


@pytest.mark.parametrize("packs", [1, 3, 6, 30, 40, 45])
def test_an_interrupted_job_runs_only_the_missing_batches(tmp_path: Path, packs: int) -> None:
    source, whole, out = (tmp_path / name for name in ("in.jsonl", "a.parquet", "b.parquet"))
    write_pairs(source, 120)  # 68 candidates for the bank, in some 30 packs
    full, first, second = (FakeScorer(bank=4) for _ in range(3))
    score_file(full, source, whole, sort_window=6)
    with pytest.raises(Killed):
        score_file(first, source, out, sort_window=6, on_progress=killed_after(packs))
    assert not out.exists()
    manifest = score_file(second, source, out, sort_window=6)
    assert first.ran == packs
    assert first.ran + second.ran == full.ran
    assert out.read_bytes() == whole.read_bytes()
    assert manifest["throughput"]["resumed"]


def test_a_changed_setting_is_not_resumed_and_is_named(tmp_path: Path) -> None:
    source, out = write_pairs(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        score_file(FakeScorer(), source, out, sort_window=6, on_progress=killed_after(2))
    for scorer, options, named in (
        (FakeScorer(dtype="bfloat16"), {}, r"scorer\.dtype was 'float32', now 'bfloat16'"),
        (FakeScorer(model="other"), {}, r"scorer\.model was 'fake', now 'other'"),
        (FakeScorer(), {"sort_window": 7}, "sort_window was 6, now 7"),
        (FakeScorer(), {"fields": Fields(id="id")}, r"reading\.fields\.id"),
    ):
        with pytest.raises(UserError, match=named) as error:
            score_file(scorer, source, out, **({"sort_window": 6} | options))
        assert "--restart" in str(error.value)
    source.write_text(source.read_text().replace("word 3", "word x"))
    with pytest.raises(UserError, match=r"input\.digest"):
        score_file(FakeScorer(), source, out, sort_window=6)
    manifest = score_file(FakeScorer(), source, out, sort_window=6, restart=True)
    assert not manifest["throughput"]["resumed"]


def test_a_finished_job_is_kept_and_never_overwritten_unasked(tmp_path: Path) -> None:
    source, out = write_pairs(tmp_path / "in.jsonl"), tmp_path / "out.csv"
    first = score_file(FakeScorer(), source, out)
    again = FakeScorer()
    assert score_file(again, source, out) == first
    assert again.ran == 0
    with pytest.raises(UserError, match=r"complete, but under other settings: scorer\.dtype"):
        score_file(FakeScorer(dtype="float16"), source, out)
    manifest_path(out).unlink()
    with pytest.raises(UserError, match="no manifest"):
        score_file(again, source, out)
    score_file(again, source, out, restart=True)
    assert again.ran > 0


@pytest.mark.parametrize("bank", [3, 16384])
def test_progress_counts_every_row_and_every_stage(tmp_path: Path, bank: int) -> None:
    seen: list[Progress] = []
    source, scorer = write_pairs(tmp_path / "in.jsonl", 200), FakeScorer(bank=bank)
    score_file(scorer, source, tmp_path / "o.jsonl", sort_window=6, on_progress=seen.append)
    scoring, writing = ([p.pairs for p in seen if p.stage in stages] for stages in (("scoring", "bank"), ("writing",)))
    assert [p.stage for p in seen][-len(writing) :] == ["writing"] * len(writing)
    assert [p.stage for p in seen].count("bank") == 1
    assert scoring == sorted(scoring)
    assert scoring[-1] == writing[-1] == 200
    assert seen[-1].tokens == 10 * scorer.ran


def test_rows_that_all_fail_still_make_a_file(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("no json\n\n" + json.dumps({"instruction": "explode", "response": "now"}) + "\n")
    manifest = score_file(FakeScorer(), source, out)
    assert manifest["counts"] == {"bad_json": 1, "non_finite": 1}
    assert manifest["blank_lines"] == 1
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["1", "3"]


def test_the_model_does_not_run_if_no_row_can_be_read(tmp_path: Path) -> None:
    source, scorer = tmp_path / "in.jsonl", FakeScorer()
    source.write_text('no json\n[1]\n{"instruction": "x"}\n')
    message = (
        "none of the first 3 rows can be scored. bad_json: line 1: .*; missing_field: line 3: .*'response' is absent"
    )
    with pytest.raises(UserError, match=message):
        score_file(scorer, source, tmp_path / "out.jsonl")
    assert scorer.ran == 0


def test_names_that_are_not_unicode_are_kept_in_the_manifest(tmp_path: Path) -> None:
    source = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.jsonl"))  # named on an older system
    source.write_text('{"prompt": "p", "completion": "c", "no\\ud83dte": "text"}')
    manifest = score_file(FakeScorer(), source, tmp_path / "s.jsonl")
    assert manifest["unused_text_fields"] == {"no\ud83dte": 1}
    assert json.loads(manifest_path(tmp_path / "s.jsonl").read_text()) == manifest
    opened, _ = find_input(tmp_path / "s.jsonl", None, otherwise="")
    assert opened.path == source


@pytest.mark.parametrize("rows", [1, 23])
def test_an_input_that_changes_during_the_run_is_noticed(tmp_path: Path, rows: int) -> None:
    source, out = write_pairs(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    lines = source.read_text().splitlines()

    def change(_: Progress) -> None:
        source.write_text("\n".join(lines[:rows]) + "\n\n")

    with pytest.raises(UserError, match="changed while it was scored"):
        score_file(FakeScorer(), source, out, sort_window=6, on_progress=change)
    assert not out.exists()


def test_the_same_model_by_another_name_resumes(tmp_path: Path) -> None:
    source, out = write_pairs(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        score_file(FakeScorer(model="./m", digest="d"), source, out, sort_window=6, on_progress=killed_after(2))
    assert score_file(FakeScorer(model="/m", digest="d"), source, out, sort_window=6)["throughput"]["resumed"]
    again = FakeScorer(model="../m", digest="d")
    score_file(again, source, out, sort_window=6)
    assert again.ran == 0
    with pytest.raises(UserError, match=r"scorer\.model was '/m', now '/n'"):
        score_file(FakeScorer(model="/n", digest="e"), source, out, sort_window=6)


def test_a_file_of_blank_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="no rows"):
        score_file(FakeScorer(), tmp_path / "in.jsonl", tmp_path / "out.jsonl")


@cpu_only("processes that are forked cannot share a device")
def test_sigkill_at_any_point_and_again_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "in.jsonl", 100)
    model = tiny_model_folder(tmp_path)
    log = tmp_path / "log"

    def started(name: str, stage: str):  # type: ignore[no-untyped-def]
        settings = ["--model", str(model), "--batch-tokens", "400", "--sort-window", "20", "--bank", "8"]
        args = ["score", str(source), "-o", str(tmp_path / f"{name}.parquet"), *settings]
        return forked.start(run_and_kill.main, args, stage, log=log)

    def assert_whole(name: str) -> None:
        assert forked.end_of(started(name, "whole")) == "exit 0", (name, log.read_text()[-2000:])
        assert (tmp_path / f"{name}.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes(), name
        assert not partial_folder(tmp_path / f"{name}.parquet").exists(), name

    assert_whole("whole")
    for stage in list(run_and_kill.STAGES)[1:]:
        assert forked.end_of(started(stage, stage)) == "killed", stage
        assert_whole(stage)
    for tenths in (2, 6):  # the last of these may find the work done
        shot = started("shot", "whole")
        shot.join(tenths / 10)
        shot.kill()
        shot.join()
    assert_whole("shot")
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("restart", [False, True])
def test_a_job_overwrites_no_file_that_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: bool) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    before = write_pairs(Path("data/in.jsonl")).read_bytes()
    for source in ("data/in.jsonl", "data/*.jsonl", "data"):
        with pytest.raises(UserError, match="overwrite its own input"):
            score_file(FakeScorer(), source, "data/in.jsonl", restart=restart)
    for source, out in (("data/*", "data/scores.parquet"), ("data", "data/scores.parquet"), ("data", "data/scored")):
        with pytest.raises(UserError, match="read as data the next time"):
            score_file(FakeScorer(), source, out, restart=restart)
    assert [file.read_bytes() for file in Path("data").iterdir()] == [before]


@pytest.mark.parametrize("restart", [False, True])
def test_a_job_is_locked_until_its_output_is_written(tmp_path: Path, restart: bool) -> None:
    source, out, seen = write_pairs(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", []

    def start_another(progress: Progress) -> None:
        if progress.stage == "writing":
            with pytest.raises(UserError, match="another main-align is writing this output"):
                score_file(FakeScorer(), source, out, restart=restart)
            seen.append(progress)

    score_file(FakeScorer(), source, out, on_progress=start_another)
    assert seen
    assert out.is_file()


def test_a_window_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sort_window: expected a number of pairs, at least 1, got 0"):
        score_file(FakeScorer(), write_pairs(tmp_path / "in.jsonl"), tmp_path / "out.parquet", sort_window=0)

"""Filtering: every rule keeps the right rows, with their own fields and their own scores."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from main_align.data.fields import Fields
from main_align.errors import UserError
from main_align.filtering.filter import filter_scores
from main_align.filtering.join import BATCH
from main_align.filtering.limits import RECOMMENDED, Limit, check_together
from main_align.filtering.rules import Rule, select
from main_align.scoring.columns import COLUMNS, SCORES
from main_align.scoring.job import score_file
from main_align.scoring.manifest import manifest_path
from main_align.scoring.score_file import score_rows_of

from tests.align.fakes import FakeScorer

NAN = float("nan")


@pytest.mark.parametrize(
    ("rule", "column", "expected"),
    [
        (Rule(top=2), "mutual", [1, 3]),
        (Rule(top=2), "nll_y", [0, 4]),
        (Rule(keep=0.5), "mutual", [1, 3]),
        (Rule(keep=0.51), "mutual", [0, 1, 3]),
        (Rule(keep=0.01), "mutual", [1]),
        (Rule(keep=1e-12), "mutual", [1]),
        (Rule(keep=1e-12, min=9.0), "mutual", []),
        (Rule(top=99), "mutual", [0, 1, 3, 4]),
        (Rule(min=1.0), "mutual", [0, 1, 3, 4]),
        (Rule(min=1.1), "mutual", [1, 3]),
        (Rule(max=1.0), "ifd", [0, 4]),
        (Rule(min=9.0), "mutual", []),
        (Rule(max=2.0), "tokens_y", [0, 3, 4]),
        (Rule(min=1.1, max=2.5), "mutual", [3]),
        (Rule(min=2.0), "nll_y_given_x", [1, 3]),
        (Rule(max=2.5, top=1), "mutual", [3]),
        (Rule(max=2.5, top=1), "ifd", [0]),
        (Rule(max=2.5, keep=0.5), "mutual", [0, 3]),
    ],
)
def test_a_rule_selects_the_expected_rows(rule: Rule, column: str, expected: list[int]) -> None:
    values = np.array([1.0, 3.0, NAN, 2.0, 1.0])
    assert np.flatnonzero(select(values, column, rule)).tolist() == expected


@pytest.mark.parametrize(
    "limits",
    [
        [Limit("mutual", min=2), Limit("mutual", max=1)],
        [Limit("mutual", min=0), Limit("mutual", max=3), Limit("echo", max=1), Limit("mutual", min=2, max=1)],
        [Limit("mutual", max=1), Limit("mutual", min=0, max=4), Limit("mutual", min=2)],
    ],
)
def test_conditions_that_exclude_each_other_are_refused(limits: list[Limit]) -> None:
    with pytest.raises(UserError, match="--min mutual=2 is above --max mutual=1, so no row can be kept"):
        filter_scores("scores.parquet", "kept.jsonl", limits=limits)
    check_together(limits[:1])
    check_together([Limit("mutual", min=2), Limit("echo", max=1), Limit("mutual", min=1), Limit("mutual", max=2)])


def test_the_earlier_of_two_equal_rows_is_kept_in_both_directions() -> None:
    for column in ("mutual", "nll_y"):
        kept = select(np.full(5, 2.0), column, Rule(top=2))
        assert np.flatnonzero(kept).tolist() == [0, 1]


def test_a_percentage_of_a_hundred_rows_is_exact() -> None:
    values = np.arange(100.0)
    for percent in range(1, 101):
        assert select(values, "mutual", Rule(keep=percent / 100)).sum() == percent


@pytest.mark.parametrize(("lower_is_better", "expected"), [(True, [0, 1]), (False, [2, 3])])
def test_a_column_without_a_direction_needs_one(lower_is_better: bool, expected: list[int]) -> None:
    values, rule = np.array([0.1, 0.2, 5.0, 9.0]), Rule(keep=0.5)
    for column in ("perplexity_y", "tokens_y"):
        with pytest.raises(UserError, match="--lower-is-better or --higher-is-better"):
            select(values, column, rule)
        assert np.flatnonzero(select(values, column, rule, lower_is_better)).tolist() == expected


def test_a_range_needs_no_direction() -> None:
    assert np.flatnonzero(select(np.array([0.1, 0.2, 5.0]), "perplexity_y", Rule(max=1.0))).tolist() == [0, 1]


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_ranked_in_its_own_direction_by_default(name: str) -> None:
    values = np.array([1.0, 2.0, 3.0])
    best, worst = (0, 2) if COLUMNS[name].better == "lower" else (2, 0)
    assert np.flatnonzero(select(values, name, Rule(top=1))).tolist() == [best]
    opposite = COLUMNS[name].better != "lower"
    assert np.flatnonzero(select(values, name, Rule(top=1), opposite)).tolist() == [worst]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(), "found none"),
        (Rule(top=1, keep=0.5), "found --keep and --top"),
        (Rule(keep=50), "not a fraction"),
        (Rule(top=0), "at least one"),
        (Rule(min=NAN), "not a number"),
        (Rule(min=2.0, max=1.0), "--min 2 is above --max 1"),
    ],
)
def test_an_invalid_rule_is_refused(rule: Rule, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rule.check()


def make(folder: Path, ending: str = "jsonl", scores: str = "parquet") -> tuple[Path, Path]:
    """An input of 12 rows, two of them bad, and its scores."""
    rows: list[dict[str, Any]] = [
        {
            "id": n,
            "prompt": f"p{n}",
            "completion": f"c{n}",
            "status": "draft",
            "aligned": n % 2 == 0,
        }
        for n in range(12)
    ]
    source = folder / f"in.{ending}"
    if ending == "jsonl":
        lines = [json.dumps(row | {"extra": {"deep": [1, 2]}}) for row in rows]
        lines[4] = '{"id": 4, "prompt"'
        lines[7] = json.dumps({"id": 7, "prompt": "p7"})
        source.write_text("\n".join(lines))
    elif ending == "csv":
        with source.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa

        kinds = [("id", pa.int32()), ("prompt", pa.string()), ("completion", pa.large_string())]
        kinds += [("status", pa.string()), ("aligned", pa.bool_())]
        pq.write_table(pa.Table.from_pylist(rows, pa.schema(kinds)), source)
    out = folder / f"scores.{scores}"
    score_file(FakeScorer(), source, out)
    return source, out


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        return list(csv.DictReader(path.open(newline="")))
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("scores", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_kept_rows_have_their_own_fields_and_scores(tmp_path: Path, kind: str, scores: str, ending: str) -> None:
    source, scored = make(tmp_path, kind, scores)
    done = filter_scores(scored, tmp_path / f"kept.{ending}", keep=0.5)
    rows = read(tmp_path / f"kept.{ending}")
    expected = {row["id"]: row for row in score_rows_of(scored)}
    best = sorted((r for r in expected.values() if r["mutual"] is not None), key=lambda r: -r["mutual"])
    best = best[: (len(best) + 1) // 2]
    assert [str(r["id"]) for r in rows] == [i for i in expected if expected[i] in best]
    assert done.kept.sum() == len(rows)
    assert done.threshold == best[-1]["mutual"]
    for row in rows:
        assert row["prompt"] == f"p{row['id']}", "the row's own fields"
        assert row["status"] == "draft", "an input field is never overwritten"
        assert row["main_status"] == "ok"
        assert float(row["mutual"]) == expected[str(row["id"])]["mutual"]
        if kind == "jsonl":
            deep = row["extra"] if ending != "csv" else json.loads(row["extra"])
            assert deep == {"deep": [1, 2]}
    if kind == ending == "parquet":
        schema = pq.read_schema(tmp_path / "kept.parquet")
        assert [str(schema.field(n).type) for n in ("id", "completion")] == [
            "int32",
            "large_string",
        ]
    if kind == "jsonl":
        assert done.unscored == {"bad_json": 1, "missing_field": 1}
    assert done.aligned is not None
    assert done.aligned[0] == 1
    assert done.aligned[1] == 0
    assert source.exists()


@pytest.mark.parametrize("kind", ["folder", "parquet", "arrow"])
def test_kept_images_and_labels_are_those_of_datasets(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("PIL")
    image = datasets.Image()
    encoded = image.encode_example(np.full((2, 3, 3), 7, np.uint8))
    rows = [{"prompt": f"p{n}", "completion": f"c{n}", "label": n, "images": [encoded]} for n in range(2)]
    features = datasets.Features(
        prompt=datasets.Value("string"),
        completion=datasets.Value("string"),
        label=datasets.ClassLabel(names=["bad", "good"]),
        images=datasets.List(image),
    )
    data = datasets.Dataset.from_list(rows, features=features)
    source = tmp_path / "folder"
    data.save_to_disk(source)
    if kind == "parquet":
        data.to_parquet(source := tmp_path / "in.parquet")
    if kind == "arrow":
        (source,) = source.glob("*.arrow")
    score_file(FakeScorer(), source, tmp_path / "scores.parquet")
    filter_scores(tmp_path / "scores.parquet", tmp_path / "kept.parquet", keep=1.0)
    assert [{name: row[name] for name in rows[0]} for row in read(tmp_path / "kept.parquet")] == rows
    kept = datasets.Dataset.from_parquet(str(tmp_path / "kept.parquet"), cache_dir=str(tmp_path))
    assert {name: kept.features[name] for name in features} == features
    assert kept[0]["images"][0].size == (3, 2)
    assert "mutual" in kept.features


def test_kept_columns_have_the_types_of_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    numbers = pandas.array([1, None], dtype="Int64")
    data = pandas.DataFrame({"prompt": "p", "completion": "c", "number": numbers}, index=["x", "y"])
    data.to_parquet(tmp_path / "in.parquet")
    score_file(FakeScorer(), tmp_path / "in.parquet", tmp_path / "scores.parquet")
    filter_scores(tmp_path / "scores.parquet", tmp_path / "kept.parquet", keep=1.0)
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "kept.parquet")[list(data)], data)


@pytest.mark.parametrize("second", [[0.5], pytest.param(None, id="labels")])
def test_kept_rows_of_different_files_have_no_metadata(tmp_path: Path, second: list[float] | None) -> None:
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    for name, number in (("a", pandas.array([1], dtype="Int64")), ("b", second)):
        data = pandas.DataFrame({"id": [name], "prompt": "p", "completion": "c", "number": number})
        if second is None:
            labels = datasets.ClassLabel(names=["x", "y"] if name == "a" else ["y", "x"])
            data = datasets.Dataset.from_pandas(data.assign(number=1)).cast_column("number", labels)
        data.to_parquet(tmp_path / f"{name}.parquet")
    score_file(FakeScorer(), [tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "scores.parquet")
    filter_scores(tmp_path / "scores.parquet", tmp_path / "kept.parquet", keep=1.0)
    assert pandas.read_parquet(tmp_path / "kept.parquet")["number"].tolist() == [1, *(second or [1])]
    assert not pq.read_schema(tmp_path / "kept.parquet").metadata


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_scores_of_earlier_rounds_are_kept(tmp_path: Path, ending: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"id": "a", "prompt": "p", "completion": "c", "main_reason": "mine"}))
    for number in (1, 2, 3):
        scores, out = tmp_path / f"scores{number}.parquet", tmp_path / f"{number}.{ending}"
        score_file(FakeScorer(), source, scores)
        filter_scores(scores, out, keep=1.0)
        (before,), (after,) = read(source), read(out)
        assert {name: after[name] or "" for name in before} == {name: value or "" for name, value in before.items()}
        source = out
    assert {"mutual", "main_mutual", "main_main_mutual", "main_main_main_reason"} < after.keys()
    assert "main_id" not in after


def test_an_alias_is_filtered_like_its_column(tmp_path: Path) -> None:
    _, scored = make(tmp_path)
    done = filter_scores(scored, tmp_path / "k.jsonl", by="forward_nll", top=3)
    values = [r["nll_y_given_x"] for r in score_rows_of(scored) if r["nll_y_given_x"] is not None]
    assert done.by == "nll_y_given_x"
    assert done.threshold == sorted(values)[2]
    again = filter_scores(scored, tmp_path / "l.jsonl", by="forward_nll", max=done.threshold)
    assert again.kept.tolist() == done.kept.tolist()


def limit_rows(path: Path) -> Path:
    columns = {
        "mutual": [3, 2, 1, 0, 4, 5],
        "mutual_novel": [3, 2, 0.5, 0, 4, None],
        "nll_end": [1, 13, 14, 1, 2, None],
        "echo": [0, 0, 0, 0.95, 0.2, None],
        "refusal": [0, 0, 0, 0, 0, None],
    }
    with path.open("w") as file:
        for n, values in enumerate(zip(*columns.values(), strict=True)):
            row = {"id": n, "status": "bad_json" if values[1] is None else "ok"}
            file.write(json.dumps(row | dict(zip(columns, values, strict=True))) + "\n")
    return path


def test_a_kept_row_meets_all_limits_and_failures_are_counted(tmp_path: Path) -> None:
    scores, out = limit_rows(tmp_path / "s.jsonl"), tmp_path / "k.jsonl"
    limits = [Limit("mutual_novel", min=1.0), Limit("nll_end", max=12.0)]
    result = filter_scores(scores, out, limits=limits, scores_only=True)
    assert [row["id"] for row in read(out)] == [0, 4]
    assert result.failed == {"mutual_novel >= 1": 2, "nll_end <= 12": 2}
    assert (result.by, result.threshold) == (None, None)
    result = filter_scores(scores, out, top=1, limits=limits, scores_only=True)
    assert [row["id"] for row in read(out)] == [4]  # the best of the rows that meet the limits
    assert (result.by, result.threshold) == ("mutual", 4.0)
    with pytest.raises(UserError, match="is above"):
        filter_scores(scores, out, limits=[Limit("echo", min=2.0, max=1.0)], scores_only=True)
    with pytest.raises(UserError, match="has no column 'perplexity'"):
        filter_scores(scores, out, limits=[Limit("perplexity", max=1.0)], scores_only=True)


def test_the_recommended_limits_skip_a_column_without_values(tmp_path: Path) -> None:
    scores, out = limit_rows(tmp_path / "s.jsonl"), tmp_path / "k.jsonl"
    result = filter_scores(scores, out, recommended=True, scores_only=True)
    assert list(result.failed) == [str(limit) for limit in RECOMMENDED]
    assert [row["id"] for row in read(out)] == [0, 4]
    scores.write_text("".join(json.dumps(row | {"nll_end": None}) + "\n" for row in read(scores)))
    result = filter_scores(scores, out, recommended=True, scores_only=True)
    assert [row["id"] for row in read(out)] == [0, 1, 4]
    with pytest.raises(UserError, match="no row has a value of nll_end"):
        filter_scores(scores, out, limits=[Limit("nll_end", max=12.0)], scores_only=True)


def test_a_custom_column_is_filtered_in_the_given_direction(tmp_path: Path) -> None:
    rows = [{"id": n, "status": "ok", "mutual": 0.0, "perplexity_y": value} for n, value in enumerate([5, 0.1, 9, 0.2])]
    scores, out = tmp_path / "s.jsonl", tmp_path / "k.jsonl"
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="better direction of 'perplexity_y' is not known"):
        filter_scores(scores, out, by="perplexity_y", keep=0.5, scores_only=True)
    result = filter_scores(scores, out, by="perplexity_y", keep=0.5, lower_is_better=True, scores_only=True)
    assert ([row["id"] for row in read(out)], result.threshold, result.lower_is_better) == ([1, 3], 0.2, True)
    result = filter_scores(scores, out, by="perplexity_y", max=1, scores_only=True)
    assert ([row["id"] for row in read(out)], result.threshold, result.lower_is_better) == ([1, 3], None, None)


def test_scores_only_can_be_filtered_again(tmp_path: Path) -> None:
    _, scored = make(tmp_path)
    first, second = tmp_path / "a.parquet", tmp_path / "b.jsonl"
    filter_scores(scored, first, top=6, scores_only=True)
    filter_scores(first, second, by="semantic", top=2, scores_only=True)
    assert len(read(second)) == 2
    assert pq.read_schema(first) == pq.read_schema(scored)


def test_nothing_is_written_if_ids_differ(tmp_path: Path) -> None:
    source, scored = make(tmp_path)
    lines = source.read_text().splitlines()
    other = tmp_path / "other.jsonl"
    for changed, message in (
        ([lines[1], lines[0], *lines[2:]], "row 1 has the id '0' in the scores and '1'"),
        (lines[:-1], "the input has no row 12"),
        ([*lines, '{"id": 99}'], "the score file has no row 13"),
    ):
        other.write_text("\n".join(changed))
        with pytest.raises(UserError, match=message):
            filter_scores(scored, tmp_path / "k.jsonl", top=3, input=other)
        assert not (tmp_path / "k.jsonl").exists()


def test_a_changed_or_missing_input_is_refused(tmp_path: Path) -> None:
    source, scored = make(tmp_path)
    moved = tmp_path / "moved.jsonl"
    source.rename(moved)
    with pytest.raises(UserError, match="name its new path with --input"):
        filter_scores(scored, tmp_path / "k.jsonl", top=3)
    filter_scores(scored, tmp_path / "k.jsonl", top=3, input=moved)
    source.write_text(moved.read_text().replace("c1", "c9"))
    with pytest.raises(UserError, match="has changed since it was scored"):
        filter_scores(scored, tmp_path / "k.jsonl", top=3)
    manifest_path(scored).unlink()
    with pytest.raises(UserError, match="--scores-only"):
        filter_scores(scored, tmp_path / "k.jsonl", top=3)


def test_named_fields_are_remembered_by_the_manifest(tmp_path: Path) -> None:
    source, scored = tmp_path / "in.csv", tmp_path / "s.jsonl"
    source.write_text("uid,q,a\nx,one,two\ny,three,four\n")
    score_file(FakeScorer(), source, scored, fields=Fields("q", "a", "uid"))
    filter_scores(scored, tmp_path / "k.jsonl", keep=1.0)
    assert [(r["uid"], r["q"], "id" in r) for r in read(tmp_path / "k.jsonl")] == [
        ("x", "one", False),
        ("y", "three", False),
    ]


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    source, scored = make(tmp_path)
    for target in (source, scored):
        before = target.read_bytes()
        with pytest.raises(UserError, match="overwrite its own input"):
            filter_scores(scored, target, top=3)
        with pytest.raises(UserError, match="overwrite its own input"):
            filter_scores(scored, target, top=3, scores_only=True)
        assert target.read_bytes() == before


@pytest.mark.parametrize("listing", ["data", "data/*.jsonl"])
def test_no_file_of_a_folder_or_pattern_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    source, scored = make(tmp_path / "data")
    (tmp_path / "data" / "b.jsonl").write_bytes(source.read_bytes())
    scored.unlink()
    scores = tmp_path / "scores.parquet"
    score_file(FakeScorer(), listing, scores)
    before = source.read_bytes()
    for scores_only in (False, True):
        with pytest.raises(UserError, match="overwrite its own input"):
            filter_scores(scores, source, top=3, scores_only=scores_only)
    assert source.read_bytes() == before


def test_another_file_is_matched_by_ids_and_never_by_position(tmp_path: Path) -> None:
    source, scored, out = tmp_path / "in.jsonl", tmp_path / "scored.parquet", tmp_path / "k.jsonl"
    rows = [{"instruction": f"say {n}", "response": "word " * (n + 1)} for n in range(4)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score_file(FakeScorer(), source, scored)
    for name, changed in (("reversed", rows[::-1]), ("edited", [*rows[:3], rows[3] | {"response": "else"}])):
        other = tmp_path / f"{name}.jsonl"
        other.write_text("".join(json.dumps(row) + "\n" for row in changed))
        with pytest.raises(UserError, match=f"{name}.jsonl is not the data set .* its line 1 has no id"):
            filter_scores(scored, out, top=1, input=other)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(source.read_bytes())
    filter_scores(scored, out, top=1, input=copy)
    assert len(read(out)) == 1


@pytest.mark.parametrize("value", [{}, 2**70, [1, "one"], {"inner": {}}])
def test_a_value_that_parquet_does_not_support_is_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "p", "completion": "c", "tag": value}))
    score_file(FakeScorer(), tmp_path / "in.jsonl", tmp_path / "s.jsonl")
    with pytest.raises(UserError, match=r"field 'tag' .*; write \.jsonl instead"):
        filter_scores(tmp_path / "s.jsonl", tmp_path / "k.parquet", keep=1.0)


@pytest.mark.parametrize("row", [{"note": "caf\ud83d"}, {"no\ud83dte": 1}, {"tags": ["caf\ud83d"]}])
def test_text_that_is_not_unicode_is_written_to_jsonl_only(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "p", "completion": "c", **row}))
    score_file(FakeScorer(), tmp_path / "in.jsonl", tmp_path / "s.jsonl")
    for ending in ("parquet", "csv") if "tags" not in row else ("parquet",):  # a cell has a list as JSON, with escapes
        message = rf"field {re.escape(repr(list(row)[-1]))} .*ud83d' is not valid Unicode text\); write \.jsonl instead"
        with pytest.raises(UserError, match=message):
            filter_scores(tmp_path / "s.jsonl", tmp_path / f"k.{ending}", keep=1.0)
        assert not (tmp_path / f"k.{ending}").exists()
    filter_scores(tmp_path / "s.jsonl", tmp_path / "k.jsonl", keep=1.0)
    assert row.items() <= read(tmp_path / "k.jsonl")[0].items()


def test_scores_without_a_value_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "explode", "completion": "c"}))
    score_file(FakeScorer(), tmp_path / "in.jsonl", tmp_path / "s.jsonl")
    with pytest.raises(UserError, match=r"no row has a value of mutual\. non_finite: line 1: NaN"):
        filter_scores(tmp_path / "s.jsonl", tmp_path / "k.jsonl", keep=1.0)
    assert not (tmp_path / "k.jsonl").exists()


@pytest.mark.parametrize(("name", "value"), [("scores", 5), ("keep", "half"), ("limits", ["mutual"]), ("top", 1.5)])
def test_arguments_of_a_wrong_type_are_refused(tmp_path: Path, name: str, value: object) -> None:
    arguments: dict[str, Any] = {"scores": tmp_path / "s.jsonl", "out": tmp_path / "k.jsonl", name: value}
    with pytest.raises(TypeError, match=f"^{name} must be "):
        filter_scores(**arguments)


@pytest.mark.parametrize("many", [1, BATCH])
def test_mixed_types_are_written_to_jsonl_only(tmp_path: Path, many: int) -> None:
    source = tmp_path / "in.jsonl"
    tags = [1] * many + ["one"]
    rows = [{"prompt": "p", "completion": "c", "tag": tag} for tag in tags]
    source.write_text("\n".join(map(json.dumps, rows)))
    score_file(FakeScorer(), source, tmp_path / "s.jsonl")
    message = rf"field 'tag' of row {many + 1} of the output .*int64 vs string.*; write \.jsonl instead"
    with pytest.raises(UserError, match=message):
        filter_scores(tmp_path / "s.jsonl", tmp_path / "k.parquet", keep=1.0)
    filter_scores(tmp_path / "s.jsonl", tmp_path / "k.jsonl", keep=1.0)
    assert [row["tag"] for row in read(tmp_path / "k.jsonl")] == tags

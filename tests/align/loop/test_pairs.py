"""The plan of the stages, and the pairs that they read and write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from main_align.data.pairs import Pair, Turn
from main_align.errors import UserError
from main_align.loop import LoopConfig
from main_align.loop.pairs import (
    Generation,
    generation_row,
    read_generations,
    read_pairs,
    read_unpaired_responses,
    training_rows,
)
from main_align.loop.plan import make_plan

NEEDED: dict[str, Any] = {"seed_pairs": "s.jsonl", "output_dir": "run"}


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_stage_reads_the_latest_models_and_generated_pairs() -> None:
    plan = make_plan(LoopConfig(**NEEDED, rounds=2, unpaired_responses="u.jsonl"))
    assert [(s.work, s.direction, s.round, s.forward_stage, s.reverse_stage, s.pairs_stage) for s in plan] == [
        ("train", "forward", 0, None, None, None),
        ("train", "reverse", 0, "00-warmup-forward", None, None),
        ("generate", "reverse", 1, "00-warmup-forward", "01-warmup-reverse", None),
        ("train", "forward", 1, "00-warmup-forward", "01-warmup-reverse", "02-round1-generate-instructions"),
        ("generate", "forward", 1, "03-round1-train-forward", "01-warmup-reverse", None),
        ("train", "reverse", 1, "03-round1-train-forward", "01-warmup-reverse", "04-round1-generate-responses"),
        ("generate", "reverse", 2, "03-round1-train-forward", "05-round1-train-reverse", None),
        ("train", "forward", 2, "03-round1-train-forward", "05-round1-train-reverse", plan[6].name),
        ("generate", "forward", 2, "07-round2-train-forward", "05-round1-train-reverse", None),
        ("train", "reverse", 2, "07-round2-train-forward", "05-round1-train-reverse", plan[8].name),
        ("augment", "reverse", 2, "07-round2-train-forward", "09-round2-train-reverse", None),
        ("filter", "forward", 2, "07-round2-train-forward", "09-round2-train-reverse", "10-augment"),
    ]
    bare = make_plan(LoopConfig(**NEEDED, rounds=1, warmup_epochs=0))
    assert [stage.work for stage in bare] == ["generate", "train"] * 2


def test_an_id_field_that_no_seed_pair_has_is_an_error(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "s.jsonl", [{"uid": "a", "prompt": "x", "completion": "y"}])
    config = LoopConfig(**NEEDED | {"seed_pairs": source}, id_field="nope")
    with pytest.raises(UserError, match="no row has the field of id_field 'nope'; leave it out"):
        read_pairs(source, config)
    assert read_pairs(source, LoopConfig(**NEEDED | {"seed_pairs": source}, id_field="uid")).pairs[0].id == "a"


def test_unpaired_responses_are_read_from_any_common_field(tmp_path: Path) -> None:
    config = LoopConfig(**NEEDED)
    for field in ("completion", "response", "output", "text"):
        source = write_lines(tmp_path / f"{field}.jsonl", [{"id": "a", field: "yes"}, {"id": "b", field: " "}])
        found = read_unpaired_responses(source, config)
        assert [(p.id, p.instruction, p.response, p.status) for p in found.pairs] == [
            ("a", "", "yes", "ok"),
            ("b", "", " ", "empty_response"),
        ]
    source = write_lines(tmp_path / "named.jsonl", [{"answer": "yes", "text": "no"}])
    named = read_unpaired_responses(source, LoopConfig(**NEEDED, response_field="answer"))
    assert [pair.response for pair in named.usable] == ["yes"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"answer": "x"}], r"none of the fields completion, .* \(it has answer\); name the field with response_field"),
        ([{"text": ""}], "none of its 1 rows has a response in the field 'text'; the first row: empty_response"),
    ],
)
def test_unpaired_responses_without_a_response_are_an_error(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_unpaired_responses(write_lines(tmp_path / "u.jsonl", rows), LoopConfig(**NEEDED))


def test_seed_pairs_without_a_usable_row_report_the_first_row(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "s.jsonl", [{"q": "a", "a": "b"}])
    with pytest.raises(UserError, match="missing_field, line 1: found 'q', 'a'"):
        read_pairs(source, LoopConfig(**NEEDED))


def test_a_generated_row_keeps_the_input_side_and_the_status(tmp_path: Path) -> None:
    pair = Pair("p", 1, "what?", "that.", (Turn("system", "be brief"),))
    forward = generation_row(pair, "forward", Generation("ok", "new", tokens=2))
    assert forward["prompt"][-1] == {"role": "user", "content": "what?"}
    assert forward["completion"] == [{"role": "assistant", "content": "new"}]
    reverse = generation_row(Pair("p", 1, "", "that."), "reverse", Generation("ok", "new", tokens=2))
    assert (reverse["prompt"], reverse["completion"], reverse["synthetic"]) == ("new", "that.", True)
    cut = generation_row(Pair("q", 2, "", "that."), "reverse", Generation("unfinished", "half a", "too long", 9))
    assert cut["prompt"] is None
    assert cut["generation"] == {"status": "unfinished", "reason": "too long", "tokens": 9, "text": "half a"}
    path = Path(write_lines(tmp_path / "pairs.jsonl", [forward, reverse | {"id": "r"}, cut]))
    back = read_generations(path)
    assert [(p.instruction, p.response, len(p.context)) for p in back] == [("what?", "new", 1), ("new", "that.", 0)]


def test_training_rows_share_one_format_and_mark_synthetic_pairs() -> None:
    plain, turned = Pair("a", 1, "x", "y"), Pair("b", 2, "x2", "y2", (Turn("user", "u"), Turn("assistant", "v")))
    assert training_rows([plain], []) == [{"prompt": "x", "completion": "y"}]
    rows = training_rows([plain], [turned])
    assert [row["synthetic"] for row in rows] == [False, True]
    assert rows[0]["prompt"] == [{"role": "user", "content": "x"}]
    assert [turn["content"] for turn in rows[1]["prompt"]] == ["u", "v", "x2"]

"""Answer files: the judges' own rules, batches, turns, seeds, and a resume that gives the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from main_align.cli.answer import Benchmark
from main_align.cli.app import app
from main_align.data.read import open_source
from main_align.errors import UserError
from main_align.evaluation.answer import AnswerSettings, answer_file
from main_align.evaluation.benchmarks import FORMATS, MtBench, read_questions
from main_align.loop.config import MIN_TEMPERATURE
from main_align.loop.generation import TransformersGenerator
from main_align.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from ..forked import run_ranks
from ..tiny_models import cpu_only, tiny_model_folder

SHORT = AnswerSettings(max_new_tokens=6, batch_tokens=256, dtype="float32")
ALPACA = [
    {"dataset": "helpful_base", "instruction": f"  Question {n}\n", "output": "theirs", "generator": "davinci"}
    for n in range(7)
]
MT = [
    {"question_id": 90 - n, "category": category, "turns": [f"First {n}?", f"Then {n}?"]}
    for n, category in enumerate(["writing", "math", "stem", "coding", "unheard of"])
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def alpaca(tmp_path: Path) -> str:
    path = tmp_path / "alpaca_eval.json"
    path.write_text(json.dumps(ALPACA))
    return str(path)


@pytest.fixture
def mt(tmp_path: Path) -> str:
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MT))
    return str(path)


def test_the_command_offers_every_format():
    assert [each.value for each in Benchmark] == list(FORMATS)


def test_alpaca_eval_gets_its_array_with_untouched_instructions(model, alpaca, tmp_path):
    manifest = answer_file(model, alpaca, tmp_path / "mine.json", answer_format="alpaca_eval", settings=SHORT)
    rows = json.loads((tmp_path / "mine.json").read_text())
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in ALPACA]
    assert {row["generator"] for row in rows} == {"mine"}
    assert {row["dataset"] for row in rows} == {"helpful_base"}
    assert all(row["output"] != "theirs" for row in rows)
    assert manifest["questions"] == sum(manifest["counts"].values()) == 7


def test_the_questions_are_never_overwritten(model, alpaca):
    with pytest.raises(UserError, match="overwrite its own input"):
        answer_file(model, alpaca, Path(alpaca), answer_format="alpaca_eval", settings=SHORT, restart=True)
    assert json.loads(Path(alpaca).read_text()) == ALPACA


def test_a_field_that_is_not_unicode_is_written_as_it_was_read(model, tmp_path):
    questions = [{"instruction": "Why?", "note": "caf\ud83d"}]
    (tmp_path / "q.json").write_text(json.dumps(questions))
    answer_file(model, str(tmp_path / "q.json"), tmp_path / "m.json", answer_format="alpaca_eval", settings=SHORT)
    assert json.loads((tmp_path / "m.json").read_text())[0]["note"] == "caf\ud83d"


def test_mt_bench_gets_one_sorted_line_per_question_with_both_turns(model, mt, tmp_path):
    answer_file(model, mt, tmp_path / "mine.jsonl", answer_format="mt_bench", settings=SHORT)
    rows = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == sorted(row["question_id"] for row in MT)
    assert {row["model_id"] for row in rows} == {"mine"}
    assert len({row["answer_id"] for row in rows}) == len(MT)
    for row in rows:
        assert row["choices"][0]["index"] == 0
        assert [type(text) for text in row["choices"][0]["turns"]] == [str, str]
        assert row["tstamp"] > 1.7e9


@cpu_only("compares with a plain loop in float32")
def test_the_first_answer_is_in_the_second_turns_context(model, mt, tmp_path):
    """Greedy answers equal those of a plain loop over questions and turns, one sequence at a time."""
    settings = AnswerSettings(temperature=0.0, max_new_tokens=6, batch_tokens=256, dtype="float32")
    answer_file(model, mt, tmp_path / "mine.jsonl", answer_format="mt_bench", settings=settings)
    rows = {row["question_id"]: row for row in map(json.loads, (tmp_path / "mine.jsonl").read_text().splitlines())}
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    for question in MT:
        text = ""
        for turn, asked in enumerate(question["turns"]):
            text += f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer("<|endoftext|>" + text, return_tensors="pt", add_special_tokens=False).input_ids
            new = network.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=[0, 1, 2], pad_token_id=0)
            answer = tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True).strip()
            assert rows[question["question_id"]]["choices"][0]["turns"][turn] == answer
            text += f"{answer}<|im_end|>\n"


def test_the_lowest_temperature_is_greedy(model, alpaca, tmp_path):
    texts = []
    for temperature in (0, MIN_TEMPERATURE):
        settings, out = replace(SHORT, temperature=temperature), tmp_path / f"m{temperature}.json"
        answer_file(model, alpaca, out, answer_format="alpaca_eval", settings=settings)
        texts.append([row["output"] for row in json.loads(out.read_text())])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
        ({"batch_tokens": 2.5}, "batch_tokens must be a whole number"),
        ({"temperature": -0.5}, "temperature must be at least 0"),
        ({"temperature": 1e-320}, "temperature must be 0, which is greedy, or at least 1e-06"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"temperature": float("inf")}, "temperature must be finite"),
    ],
)
def test_settings_out_of_range_are_named(given, message):
    with pytest.raises(UserError, match=message):
        AnswerSettings(**given)


def test_the_command_refuses_a_negative_seed(tmp_path):
    arguments = ["answer", "m", "q.json", "-o", str(tmp_path / "a.json"), "--format", "alpaca_eval", "--seed", "-1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Invalid value for '--seed'" in result.output


def test_the_category_sets_the_temperature(mt):
    questions = read_questions(list(open_source(mt).rows()), MtBench())
    assert [question.temperature for question in questions] == [0.7, 0.0, 0.1, 0.0, 0.7]


@pytest.mark.parametrize("name", ["alpaca_eval", "mt_bench"])
def test_an_interrupted_run_resumes_to_the_same_bytes(model, alpaca, mt, tmp_path, monkeypatch, name):
    source, ending = (alpaca, ".json") if name == "alpaca_eval" else (mt, ".jsonl")
    settings = AnswerSettings(max_new_tokens=6, batch_tokens=64, dtype="float32")
    options: dict[str, Any] = {"answer_format": name, "settings": settings}
    whole, cut = tmp_path / "whole" / f"m{ending}", tmp_path / "cut" / f"m{ending}"
    whole.parent.mkdir()
    cut.parent.mkdir()
    batches = []
    generate = TransformersGenerator.generate

    def counted(self: Any, batch: Any) -> Any:
        batches.append(len(batch))
        return generate(self, batch)

    monkeypatch.setattr(TransformersGenerator, "generate", counted)
    answer_file(model, source, whole, **options)
    needed, start = len(batches), len(batches)
    assert needed > 3

    def stop(progress: Progress) -> None:
        assert progress.unit == "answers"
        if len(batches) - start == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_file(model, source, cut, on_progress=stop, **options)
    assert not cut.exists()
    answer_file(model, source, cut, **options)
    assert len(batches) - start == needed  # no batch twice
    a, b = whole.read_text(), cut.read_text()
    if name == "mt_bench":
        times = [json.loads(text.splitlines()[0])["tstamp"] for text in (a, b)]
        a, b = (text.replace(json.dumps(time), "0") for text, time in zip((a, b), times, strict=True))
    assert a == b
    assert not cut.with_name(cut.name + ".partial").exists()
    answer_file(model, source, cut, **options)  # complete
    assert len(batches) - start == needed
    with pytest.raises(UserError, match="seed was 0, now 1"):
        answer_file(model, source, cut, answer_format=name, settings=AnswerSettings(6, seed=1, dtype="float32"))


def test_an_answer_does_not_depend_on_its_batch(model, alpaca, tmp_path):
    texts = []
    for tokens in (64, 4096):
        settings = AnswerSettings(max_new_tokens=6, batch_tokens=tokens, dtype="float32")
        out = tmp_path / f"m{tokens}.json"
        answer_file(model, alpaca, out, answer_format="alpaca_eval", settings=settings)
        texts.append([row["output"] for row in json.loads(out.read_text())])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


def _answer(model: str, questions: str, out: str) -> None:
    answer_file(model, questions, Path(out), answer_format="mt_bench", settings=SHORT)


@cpu_only("two processes on one device")
def test_two_processes_share_the_batches(model, mt, tmp_path):
    answers = []
    for count in (1, 2):
        out = tmp_path / f"m{count}.jsonl"
        run_ranks(count, _answer, model, mt, str(out), folder=tmp_path)
        answers.append([json.loads(line)["choices"] for line in out.read_text().splitlines()])
    assert answers[0] == answers[1]
    assert not list(tmp_path.glob("*.partial"))


def test_unfinished_answers_are_kept_and_listed(model, mt, tmp_path):
    settings = AnswerSettings(max_new_tokens=2, dtype="float32")
    manifest = answer_file(model, mt, tmp_path / "mine.jsonl", answer_format="mt_bench", settings=settings)
    listed = {(each["question"], each["turn"]) for each in manifest["unfinished"] if each["status"] == "unfinished"}
    assert len(listed) == manifest["counts"]["unfinished"] > 0
    assert json.loads((tmp_path / "mine.jsonl.manifest.json").read_text()) == manifest
    rows = {str(row["question_id"]): row for row in map(json.loads, (tmp_path / "mine.jsonl").read_text().splitlines())}
    assert any(rows[question]["choices"][0]["turns"][turn - 1] for question, turn in listed)


def test_a_question_longer_than_the_context_is_listed_with_its_number(model, tmp_path):
    path = tmp_path / "question.jsonl"
    rows = [{"question_id": 7, "turns": ["long " * 200]}, {"question_id": 8, "turns": ["short"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "mine.jsonl"
    manifest = answer_file(model, str(path), out, answer_format="mt_bench", settings=SHORT)
    (listed,) = [each for each in manifest["unfinished"] if each["question"] == "7"]
    assert listed["status"] == "too_long"
    assert listed["reason"].startswith("question 7: a prompt of")


def test_a_run_without_any_answer_fails_and_writes_nothing(model, tmp_path):
    path = tmp_path / "question.jsonl"
    path.write_text(json.dumps({"question_id": 7, "turns": ["long " * 200]}) + "\n")
    with pytest.raises(UserError, match="the model answered nothing; the first is too_long: question 7"):
        answer_file(model, str(path), tmp_path / "mine.jsonl", answer_format="mt_bench", settings=SHORT)
    assert not (tmp_path / "mine.jsonl").exists()


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        ([{"instruction": "a"}, {"prompt": "b"}], "alpaca_eval", "row 2: `instruction` is not a text"),
        ([{"question_id": 1, "turns": ["a"]}] * 2, "mt_bench", "question_id 1 occurs twice"),
        ([{"question_id": "1", "turns": ["a"]}], "mt_bench", "row 1: `question_id` is not an integer"),
        ([{"question_id": 1, "turns": "a"}], "mt_bench", "row 1: `turns` is not a list"),
        ([{"question_id": 1, "turns": ["a", ""]}], "mt_bench", "row 1: an entry of `turns` is not a text"),
        ([{"question_id": 1, "turns": ["\ud83d"]}], "mt_bench", "row 1: an entry of `turns` is not valid Unicode"),
        ([{"instruction": "a", "input": "\ud83d"}], "alpaca_eval", "row 1: `input` is not valid Unicode"),
    ],
)
def test_a_file_that_is_no_question_set_is_refused_by_row(model, tmp_path, rows, name, message):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=f"questions.jsonl: {message}"):
        answer_file(model, str(path), tmp_path / f"m{FORMATS[name].ending}", answer_format=name)


def test_an_ending_that_the_judge_does_not_read_is_refused(model, mt, tmp_path):
    with pytest.raises(UserError, match=r"mt_bench reads \.jsonl files"):
        answer_file(model, mt, tmp_path / "mine.json", answer_format="mt_bench")

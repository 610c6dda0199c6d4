"""FORMATS, AnswerFormat, Question: question sets of AlpacaEval and MT-Bench, and the answer files for their judges.

Sources: AlpacaEval (https://github.com/tatsu-lab/alpaca_eval, `model_outputs`) and MT-Bench
(https://github.com/lm-sys/FastChat, fastchat/llm_judge).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..data.pairs import NOT_UNICODE, is_unicode
from ..data.sources.source import Row
from ..data.write import check_place, to_document, to_json
from ..errors import UserError


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Args:
        key: its id in messages and in the manifest: the question_id, or the row number.
        turns: the user's turns, asked one after the other.
        temperature: sampling temperature that the benchmark sets; 0 is greedy.
        record: the row as it was read.
    """

    key: str
    turns: tuple[str, ...]
    temperature: float
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one model.

    Args:
        model: name of the model in the file.
        texts: one tuple per question, with one text per turn. A turn without an answer is empty.
        started: seconds since 1970 at which the job began.
    """

    model: str
    texts: Sequence[tuple[str, ...]]
    started: float


class AnswerFormat(ABC):
    """One benchmark: reads its questions and writes its answer file."""

    name: str
    ending: str
    """Ending of the answer file, which its judge requires."""
    max_new_tokens: int
    """Longest answer in tokens, as in the benchmark's own scripts."""

    @abstractmethod
    def question(self, row: Row) -> Question:
        """Convert one row.

        Args:
            row: a row of the question file.

        Raises:
            UserError: the row is no question of this benchmark.
        """

    @abstractmethod
    def write(self, path: Path, questions: Sequence[Question], answers: Answers) -> None:
        """Write the answer file.

        Args:
            path: the file.
            questions: the questions in the order of the question file.
            answers: one entry per question.
        """

    def check_output(self, out: Path) -> None:
        """Check that `out` can be written and that the judge would read it.

        Args:
            out: the answer file.

        Raises:
            UserError: a wrong ending, or no such folder.
        """
        if out.suffix != self.ending:
            raise UserError(
                f"{out}: {self.name} reads {self.ending} files; the name before the ending is the model's name. "
                f"Give -o {out.stem}{self.ending}"
            )
        check_place(out)

    def _text(self, row: Row, value: Any, name: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"row {row.line}: {name} is not a text, but {self.name} needs one")
        if not is_unicode(value):
            raise UserError(f"row {row.line}: {name} {NOT_UNICODE}")
        return value


class AlpacaEval(AnswerFormat):
    """AlpacaEval: an array of objects with `instruction`, `output` and `generator`.

    The judge joins the two files by `instruction`, so it is copied unchanged, as are all other fields.
    """

    name, ending, max_new_tokens = "alpaca_eval", ".json", 2048
    temperature = 0.7

    def question(self, row: Row) -> Question:
        record = row.record or {}
        turn = self._text(row, record.get("instruction"), "`instruction`")
        if extra := record.get("input"):
            turn = f"{turn}\n{self._text(row, extra, '`input`')}"
        return Question(str(row.line), (turn,), self.temperature, record)

    def write(self, path: Path, questions: Sequence[Question], answers: Answers) -> None:
        rows = [
            {**question.record, "output": texts[0], "generator": answers.model}
            for question, texts in zip(questions, answers.texts, strict=True)
        ]
        path.write_text(to_document(rows), encoding="utf-8")


class MtBench(AnswerFormat):
    """MT-Bench: one line per question in `model_answer/MODEL.jsonl`, sorted by `question_id`.

    The judge takes the model's name from the file's name.
    """

    name, ending, max_new_tokens = "mt_bench", ".jsonl", 1024
    temperatures: Mapping[str, float] = {
        "writing": 0.7,
        "roleplay": 0.7,
        "extraction": 0.0,
        "math": 0.0,
        "coding": 0.0,
        "reasoning": 0.0,
        "stem": 0.1,
        "humanities": 0.1,
        "arena-hard-200": 0.0,
    }
    """Sampling temperature by category, as in FastChat; other categories have 0.7."""

    def question(self, row: Row) -> Question:
        record = row.record or {}
        number, turns = record.get("question_id"), record.get("turns")
        if isinstance(number, bool) or not isinstance(number, int):
            raise UserError(f"row {row.line}: `question_id` is not an integer, but {self.name} needs one")
        if not isinstance(turns, list) or not turns:
            raise UserError(f"row {row.line}: `turns` is not a list of texts, but {self.name} needs one")
        texts = tuple(self._text(row, turn, "an entry of `turns`") for turn in turns)
        return Question(str(number), texts, self.temperatures.get(str(record.get("category")), 0.7), record)

    def write(self, path: Path, questions: Sequence[Question], answers: Answers) -> None:
        lines = []
        for question, texts in zip(questions, answers.texts, strict=True):
            number = question.record["question_id"]
            identity = sha256(json.dumps([answers.model, number, *texts]).encode()).hexdigest()[:22]
            choices = [{"index": 0, "turns": list(texts)}]
            record = {"question_id": number, "answer_id": identity, "model_id": answers.model, "choices": choices}
            lines.append((number, to_json({**record, "tstamp": answers.started}) + "\n"))
        path.write_text("".join(line for _, line in sorted(lines)), encoding="utf-8", newline="\n")


FORMATS: Mapping[str, AnswerFormat] = {each.name: each for each in (AlpacaEval(), MtBench())}
"""The formats by name."""


def read_questions(rows: Sequence[Row], answer_format: AnswerFormat) -> list[Question]:
    """Convert the rows of a question file.

    Args:
        rows: the rows.
        answer_format: the benchmark.

    Raises:
        UserError: there is no row, a row is unreadable or no question, or two questions have one id.
    """
    questions = []
    for row in rows:
        if row.status != "ok":
            raise UserError(row.reason)
        questions.append(answer_format.question(row))
    if not questions:
        raise UserError("there is no question")
    keys = [question.key for question in questions]
    if repeated := next((key for index, key in enumerate(keys) if key in keys[:index]), None):
        raise UserError(f"question_id {repeated} occurs twice, and the judge keeps one answer per id")
    return questions

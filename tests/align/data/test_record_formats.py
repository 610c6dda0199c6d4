"""Record formats: records of known data sets give the expected pair, and no part of the prompt is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from main_align.cli.score import FORMATS
from main_align.data.fields import Fields, Notes
from main_align.data.formats.conversion import can_hold_pairs, pair_from_record
from main_align.data.formats.format_types import Instances, TwoFields
from main_align.data.formats.record_formats import RECORD_FORMATS
from main_align.data.formats.record_view import RecordView
from main_align.data.pairs import Turn

X, Y = "Name a prime.", "Seven."
USER, ASSISTANT = {"role": "user", "content": X}, {"role": "assistant", "content": Y}
NINE = {"role": "assistant", "content": "Nine."}
SYSTEM = Turn("system", "S")
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"n": 1}'}}
CALLED = [Turn("assistant", '{"name": "f", "arguments": {"n": 1}}'), Turn("user", "42")]


@pytest.mark.parametrize("record_format", RECORD_FORMATS, ids=lambda record_format: record_format.description)
def test_each_record_format_reads_its_example(record_format: Any) -> None:
    notes = Notes()
    pair = pair_from_record(record_format.example, 1, Fields(), notes=notes)
    assert (pair.status, pair.instruction.replace("\n", " "), pair.response) == ("ok", X, Y)
    assert not notes.unused
    assert can_hold_pairs(list(record_format.example))
    assert record_format.used_by


CASES: dict[str, tuple[dict[str, Any], str, str, tuple[Turn, ...]]] = {
    "dolly": ({"instruction": X, "context": "Of primes.", "response": Y}, f"{X}\nOf primes.", Y, ()),
    "both additions": ({"instruction": X, "input": "a", "context": "b", "output": Y}, f"{X}\na\nb", Y, ()),
    "context of a question": ({"question": X, "context": ["a", "b"], "answer": Y}, f"{X}\na\nb", Y, ()),
    "no input": ({"instruction": X, "input": "<noinput>", "output": Y}, X, Y, ()),
    "openorca": ({"id": "1", "system_prompt": "S", "question": X, "response": Y}, X, Y, (SYSTEM,)),
    "empty system prompt": ({"system_prompt": "", "question": X, "response": Y}, X, Y, ()),
    "llama-factory": (
        {"instruction": X, "input": "", "output": Y, "system": "S", "history": [["a", "b"]]},
        X,
        Y,
        (SYSTEM, Turn("user", "a"), Turn("assistant", "b")),
    ),
    "history in csv": (
        {"instruction": X, "output": Y, "history": "[['a', 'b']]"},
        X,
        Y,
        (Turn("user", "a"), Turn("assistant", "b")),
    ),
    "system beside messages": ({"system": "S", "messages": [USER, ASSISTANT]}, X, Y, (SYSTEM,)),
    "system turn and history": (
        {
            "messages": [{"role": "system", "content": "S"}, USER, ASSISTANT],
            "history": [{"user": "a", "assistant": "b"}],
        },
        X,
        Y,
        (SYSTEM, Turn("user", "a"), Turn("assistant", "b")),
    ),
    "two system turns": (
        {"messages": [{"role": "developer", "content": "S"}, {"role": "System", "content": "T"}, USER, ASSISTANT]},
        X,
        Y,
        (Turn("system", "S\n\nT"),),
    ),
    "lima": ({"conversations": ["a", "b", X, Y]}, X, Y, (Turn("user", "a"), Turn("assistant", "b"))),
    "json text": ({"messages": json.dumps([USER, ASSISTANT])}, X, Y, ()),
    "python text": ({"messages": str([USER, ASSISTANT])}, X, Y, ()),
    "struct of lists": ({"messages": {"role": ["user", "assistant"], "content": [X, Y]}}, X, Y, ()),
    "null keys": (
        {"messages": [{**USER, "from": None, "tool_calls": None}, {"role": None, "from": "gpt", "value": Y}]},
        X,
        Y,
        (),
    ),
    "roles of any case": (
        {"conversations": [{"from": "Human", "value": X}, {"from": "ChatGPT", "value": Y}]},
        X,
        Y,
        (),
    ),
    "bot": ({"messages": [{"role": "USER", "text": X}, {"role": "bot", "text": Y}]}, X, Y, ()),
    "gemini": (
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "S"}]},
            "contents": [{"role": "user", "parts": [{"text": X}]}, {"role": "model", "parts": [{"text": Y}]}],
        },
        X,
        Y,
        (SYSTEM,),
    ),
    "bedrock": (
        {
            "system": [{"text": "S"}],
            "messages": [
                {"role": "user", "content": [{"text": X}]},
                {"role": "assistant", "content": [{"text": Y}]},
            ],
        },
        X,
        Y,
        (SYSTEM,),
    ),
    "content parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Name "}, "a prime."]}, ASSISTANT]},
        X,
        Y,
        (),
    ),
    "a tool between the two": (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c", "content": "42"},
                ASSISTANT,
            ]
        },
        X,
        Y,
        tuple(CALLED),
    ),
    "a tool in the context": (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": [{"type": "text", "text": "42"}]},
                {"role": "assistant", "content": "b"},
                USER,
                ASSISTANT,
            ]
        },
        X,
        Y,
        (Turn("user", "a"), *CALLED, Turn("assistant", "b")),
    ),
    "sharegpt's call": (
        {
            "conversations": [
                {"from": "human", "value": X},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"n": 1}}'},
                {"from": "observation", "value": "42"},
                {"from": "gpt", "value": Y},
            ]
        },
        X,
        Y,
        tuple(CALLED),
    ),
    "anthropic's call": (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"n": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "content": "42"}]},
                ASSISTANT,
            ]
        },
        X,
        Y,
        tuple(CALLED),
    ),
    "a call as the response": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}]},
        X,
        CALLED[0].text,
        (),
    ),
    "nested": ({"meta": {"lang": "en"}, "data": {"instruction": X, "output": Y}, "system": "S"}, X, Y, (SYSTEM,)),
    "dataset viewer": ({"row_idx": 0, "row": {"prompt": X, "completion": Y}, "truncated_cells": []}, X, Y, ()),
    "any spelling": ({"System Prompt": "S", "Question": X, "Answer": Y}, X, Y, (SYSTEM,)),
    "ultrafeedback": (
        {"prompt": X, "messages": [USER, ASSISTANT], "chosen": [USER, ASSISTANT], "rejected": [USER, NINE]},
        X,
        Y,
        (),
    ),
    "explicit prompt": ({"prompt": [USER], "chosen": [ASSISTANT], "rejected": [NINE]}, X, Y, ()),
    "hh-rlhf": (
        {
            "chosen": f"\n\nHuman: a\n\nAssistant: b\n\nHuman: {X}\n\nAssistant: {Y}",
            "rejected": f"\n\nHuman: a\n\nAssistant: b\n\nHuman: {X}\n\nAssistant: Nine.",
        },
        X,
        Y,
        (Turn("user", "a"), Turn("assistant", "b")),
    ),
    "hh prompt": ({"prompt": f"\n\nHuman: {X}\n\nAssistant:", "chosen": Y, "rejected": "Nine."}, X, Y, ()),
    "orca dpo": ({"system": "S", "question": X, "chosen": Y, "rejected": "Nine."}, X, Y, (SYSTEM,)),
    "llama-factory dpo": (
        {
            "conversations": [{"from": "human", "value": X}],
            "chosen": {"from": "gpt", "value": Y},
            "rejected": {"from": "gpt", "value": "Nine."},
        },
        X,
        Y,
        (),
    ),
    "xtuner": ({"conversation": [{"system": "S", "input": X, "output": Y}]}, X, Y, (SYSTEM,)),
    "prompt as json text": ({"prompt": json.dumps([USER]), "completion": json.dumps([ASSISTANT])}, X, Y, ()),
    "a prompt that is json": ({"prompt": "[1, 2]", "completion": Y}, "[1, 2]", Y, ()),
    "empty columns of another form": ({"prompt": "", "completion": "", "question": X, "answer": Y}, X, Y, ()),
}


@pytest.mark.parametrize("name", CASES)
def test_a_record_of_a_known_data_set_gives_its_pair(name: str) -> None:
    record, x, y, context = CASES[name]
    pair = pair_from_record(record, 1, Fields())
    assert (pair.status, pair.reason) == ("ok", "")
    assert (pair.instruction, pair.response, pair.context) == (x, y, context)


PREFERENCES = ("ultrafeedback", "explicit prompt", "hh-rlhf", "hh prompt", "orca dpo", "llama-factory dpo")


@pytest.mark.parametrize("name", PREFERENCES)
def test_preference_rejected_reads_the_other_response(name: str) -> None:
    record, x, _, context = CASES[name]
    pair = pair_from_record(record, 1, Fields(preference="rejected"))
    assert (pair.instruction, pair.response, pair.context) == (x, "Nine.", context)


def test_preference_rejected_needs_a_rejected_response() -> None:
    pair = pair_from_record({"prompt": X, "completion": Y}, 1, Fields(preference="rejected"))
    assert pair.status == "missing_field"
    assert "no rejected response; the row has 'prompt', 'completion'" in pair.reason


@pytest.mark.parametrize(
    ("record", "status", "reason"),
    [
        ({"instruction": None, "input": X, "output": Y}, "missing_field", "'instruction' is null"),
        ({"instruction": None, "context": X, "response": Y}, "missing_field", "'instruction' is null"),
        ({"instruction": X, "context": {"a": 1}, "response": Y}, "missing_field", "'context' is an object"),
        ({"instruction": X, "output": Y, "system": 3}, "unsupported_turns", "'system' is a number"),
        ({"instruction": X, "output": Y, "history": [{"role": "judge"}]}, "unsupported_turns", "'judge'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "unsupported_turns", "'image_url'"),
        ({"messages": [USER, ASSISTANT, ASSISTANT]}, "unsupported_turns", "ends in assistant then assistant"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "unsupported_turns", "is null"),
        ({"chosen": Y, "rejected": "Nine."}, "missing_field", "no prompt"),
        ({"question_id": 1, "turns": [X, "And another?"]}, "missing_field", "found 'question_id', 'turns'"),
        ({"question": X, "answers": ["a", "b"], "answer": ["a", "b"]}, "missing_field", "a list, not text"),
        ({"a": {"prompt": X, "completion": Y}, "b": {"prompt": X, "completion": Y}}, "missing_field", "found 'a', 'b'"),
    ],
)
def test_a_record_whose_prompt_would_be_incomplete_is_refused(record: dict[str, Any], status: str, reason: str) -> None:
    pair = pair_from_record(record, 1, Fields())
    assert pair.status == status
    assert reason in pair.reason


def test_fields_named_by_the_user_are_read() -> None:
    record = {"data": {"q": X, "turns": [{"said": Y}]}, "hint": "h", "rules": "S", "input": "not this"}
    fields = Fields("data.q", "data.turns.0.said", input="hint", system="rules")
    notes = Notes()
    pair = pair_from_record(record, 1, fields, notes=notes)
    assert (pair.instruction, pair.response, pair.context) == (f"{X}\nh", Y, (SYSTEM,))
    assert dict(notes.unused) == {"input": 1}
    pair = pair_from_record({"question": X, "answer": Y, "input": "i"}, 1, Fields("questoin", "answer"))
    assert pair.status == "missing_field"
    assert "no field 'questoin'; the row has 'question', 'answer', 'input'" in pair.reason


def test_unused_text_fields_are_counted() -> None:
    notes = Notes()
    for _ in range(2):
        record = {"id": "a", "instruction": X, "output": Y, "text": f"### {X}", "copy": X, "n": 3, "history": "once"}
        assert pair_from_record(record, 1, Fields(), notes=notes).status == "ok"
    assert dict(notes.unused) == {"text": 2, "history": 2}
    assert "'text', 'history'" in notes.warning()
    notes = Notes()
    instance = {"input": "", "output": Y}
    assert pair_from_record({"instruction": X, "instances": [instance] * 2}, 1, Fields(), notes=notes).status == "ok"
    assert pair_from_record({"messages": [USER, ASSISTANT], "tools": "[{}]"}, 2, Fields(), notes=notes).status == "ok"
    assert dict(notes.unused) == {"instances after the first": 1, "tools": 1}


def test_images_and_reasoning_are_reported_as_not_scored() -> None:
    notes, thought = Notes(), ASSISTANT | {"reasoning_content": "Let me see.", "thinking": None}
    for number, images in enumerate(([{"bytes": b"x"}], [None], None), 1):
        record = {"messages": [USER, thought], "Images": images, "audio": ""}
        assert pair_from_record(record, number, Fields(), notes=notes).status == "ok"
    assert dict(notes.unused) == {"Images": 1, "reasoning_content of messages": 3}


THOUGHT = [USER, ASSISTANT | {"reasoning_content": "Let me see."}]


@pytest.mark.parametrize(
    ("record", "place"),
    [
        ({"messages": json.dumps(THOUGHT)}, "messages"),
        ({"messages": str(THOUGHT)}, "messages"),
        ({"messages": {key: [turn.get(key) for turn in THOUGHT] for key in THOUGHT[1]}}, "messages"),
        ({"data": {"messages": THOUGHT}}, "data.messages"),
        ({"data": json.dumps({"messages": THOUGHT})}, "data.messages"),
        ({"prompt": [USER], "completion": json.dumps(THOUGHT[1])}, "completion"),
    ],
)
def test_reasoning_is_reported_in_every_layout(record: dict[str, Any], place: str) -> None:
    assert RecordView(record).unread_parts() == [f"reasoning_content of {place}"]
    assert RecordView({place: "thinking [of it]", "other": [USER]}).unread_parts() == []


def test_each_format_reports_the_parts_it_does_not_read() -> None:
    record = {"task": X, "samples": json.dumps([{"output": Y}, {"output": "Nine."}])}
    view = RecordView(record)
    assert Instances("task", "samples").ignored_parts(view) == ["samples after the first"]
    assert TwoFields("task", ("samples",)).ignored_parts(view) == []
    notes = Notes()
    record = {"instruction": X, "output": Y, "instances": [1, 2]}  # no instance of this format is ignored
    assert pair_from_record(record, 1, Fields(), notes=notes).status == "ok"
    assert not notes.unused


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0.0, "0.0"),
        (12, "12"),
        (True, "true"),
        ([3], "[3]"),
        ({"$oid": "6"}, '{"$oid": "6"}'),
        ("\ud800", "\\ud800"),
        (b"\xff", "\\xff"),
        (" a ", " a "),
    ],
)
def test_an_id_is_a_label_of_any_type(value: object, label: str) -> None:
    pair = pair_from_record({"id": value, "prompt": X, "completion": Y}, 1, Fields())
    assert (pair.id, pair.own_id, pair.status) == (label, True, "ok")


@pytest.mark.parametrize("value", [None, "", float("nan")])
def test_a_row_without_an_id_is_labelled_by_its_line(value: object) -> None:
    pair = pair_from_record({"id": value, "prompt": X, "completion": Y}, 5, Fields())
    assert (pair.id, pair.own_id, pair.status) == ("5", False, "ok")


def test_the_help_shows_every_format() -> None:
    assert all(record_format.description in FORMATS for record_format in RECORD_FORMATS)

"""Rows and columns that cannot be trained are refused by name, or reported as dropped."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")

from datasets import Dataset, IterableDataset
from main_align.data.formats.messages import ROLE_KEYS, ROLES
from main_align.errors import UserError
from main_align.training.dataset.row_checks import refusal

from tests.align.training.dataset.readers import ASSISTANT, FORMS, USER, X, Y, read, reader


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "Just text."}, "has the columns 'text', and no pair can be read"),
        ({"input_ids": [1, 2, 3]}, "has no mask of the response"),
        ({"input_ids": [5, 6], "labels": [-100, -100]}, "row 0: no token of it is scored"),
        ({"input_ids": [5, 6], "labels": [-100, 6], "seq_lengths": [1, 1]}, "row 0: it is several sequences packed"),
        ({"prompt": "", "completion": "y"}, "row 0: the instruction has no text"),
        ({"prompt": "x", "completion": "  "}, "row 0: the response has no text"),
        ({"prompt": "x", "completion": None}, "row 0: the field 'completion' is null"),
        ({"messages": [USER]}, "row 0: 'messages' ends in user"),
        ({"messages": [USER, {"role": "system", "content": "s"}, USER, ASSISTANT]}, "row 0: a system turn must be"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused_by_name(record, message):
    with pytest.raises(UserError, match=message):
        read([record])


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "clock"}}}
TURN = {"role": "assistant", "content": ""}
SAID = {
    "tools": ({"tools": [CALL]}, "its column 'tools' would be dropped: tools are not part of the prompt"),
    "tools_as_json": ({"tools": json.dumps([CALL])}, "its column 'tools'"),
    "template_kwargs": (
        {"chat_template_kwargs": {"enable_thinking": False}},
        "column 'chat_template_kwargs'.*set tokenizer",
    ),
    "undesirable": ({"label": False}, "its column 'label' is false.*filter such rows out"),
    "mismatched": ({"aligned": False}, "its column 'aligned' is false"),
    "sound": ({"audio": {"array": np.zeros(2), "path": None}}, "its column 'audio' would be dropped"),
    "image": ({"images": [b"png"]}, "its column 'images' would be dropped: only text"),
    "synthetic_text": ({"synthetic": "false"}, "its column 'synthetic' must be true or false, got 'false'"),
    "calls": (
        {"messages": [USER, {**TURN, "tool_calls": [CALL]}, USER, ASSISTANT]},
        "'tool_calls' of turn 2 of 'messages'",
    ),
    "result": (
        {"messages": [USER, {"role": "tool", "content": "6"}, ASSISTANT]},
        "turn 2 of 'messages' has the role 'tool'",
    ),
    "reasoning": ({"messages": [USER, {**ASSISTANT, "reasoning_content": "Hm."}]}, "'reasoning_content' of turn 2"),
    "weight": ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "the last turn of 'messages' has the weight 0"),
}


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("streamed", [False, True])
def test_columns_that_are_not_part_of_the_pair_are_refused_or_reported(name, streamed):
    said, message = SAID[name]
    record = said if "messages" in said else {"prompt": X, "completion": Y, **said}
    dataset = IterableDataset.from_generator(lambda: iter([record])) if streamed else Dataset.from_list([record])
    with pytest.raises(UserError, match=f"row 0: .*{message}"):
        list(reader().prepare(dataset, "train"))


RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "6"}]}
USE = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "look", "input": {"at": "clock"}}]}
THOUGHT = [USER, {**ASSISTANT, "reasoning_content": "Hm."}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        *(
            (
                {"messages": [USER, {key: role, "content": "6"}, ASSISTANT]},
                f"turn 2 of 'messages' has the role '{role}'",
            )
            for role in (name for kind in ("tool", "call") for name in ROLES[kind])
            for key in ROLE_KEYS
        ),
        ({"messages": [USER, {"role": "Tool Response", "content": "6"}, ASSISTANT]}, "has the role 'Tool Response'"),
        ({"messages": [USER, {"role": None, "from": "tool", "content": "6"}, ASSISTANT]}, "has the role 'tool'"),
        ({"messages": [USER, USE, USER, ASSISTANT]}, "turn 2 of 'messages' has a part of type 'tool_use'"),
        ({"messages": [USER, ASSISTANT, RESULT, ASSISTANT]}, "turn 3 of 'messages' has a part of type 'tool_result'"),
        ({"data": {"messages": THOUGHT}}, "'reasoning_content' of turn 2 of 'data.messages'"),
        ({"data": json.dumps({"messages": THOUGHT})}, "'reasoning_content' of turn 2 of 'data.messages'"),
        ({"data": {"messages": [USER, ASSISTANT], "tools": [CALL]}}, "its column 'data.tools' would be dropped"),
        ({"conversation": json.dumps(THOUGHT)}, "'reasoning_content' of turn 2 of 'conversation'"),
        ({"conversation": str(THOUGHT)}, "'reasoning_content' of turn 2 of 'conversation'"),
        ({"input": {"messages": [USER, USE, USER]}, "output": Y}, "turn 2 of 'input.messages' has a part"),
        ({"messages": [USER, ASSISTANT], "Tools": [CALL]}, "its column 'Tools' would be dropped"),
    ],
)
def test_what_the_reader_recognises_as_tools_or_reasoning_is_refused(record, message):
    assert message in refusal(record)


def test_objects_that_are_not_read_are_not_checked():
    assert not refusal({"prompt": X, "completion": Y, "raw": {"question": X, "answer": Y, "tools": [CALL]}})


def test_empty_columns_are_ignored():
    """Arrow gives every row the columns and keys that one of them has."""
    nothing = {"tools": None, "chat_template_kwargs": {"enable_thinking": None}, "images": [], "label": True}
    turns = [{**turn, "tool_calls": None, "reasoning_content": ""} for turn in (USER, ASSISTANT)]
    rows = read(
        [{"messages": turns, "tools_of_others": "[]", **nothing}, {"messages": turns, **nothing, "tools": "null"}]
    )
    assert [row["row"] for row in rows] == [0, 1]


@pytest.mark.parametrize("streamed", [False, True])
def test_text_that_is_dropped_is_reported_once(streamed, caplog):
    said = {"id": "one", "domain": "numbers", "score": 0.5, "note": None, "echo": "a prime"}
    records = [{"prompt": X, "completion": Y, **said}] * 3
    dataset = Dataset.from_list(records)
    assert len(list(reader().prepare(dataset.to_iterable_dataset() if streamed else dataset, "train"))) == 3
    assert [record.message for record in caplog.records if "dropped" in record.message] == [
        "train data set: text that is not part of the pairs is dropped: columns 'domain'. If a column belongs to the "
        "instruction, join them with dataset.map"
    ]
    caplog.clear()
    read([FORMS["alpaca"], {**FORMS["alpaca"], "input": ""}])
    assert not caplog.records


def test_many_bad_rows_are_counted_and_some_named():
    with pytest.raises(UserError, match=r"9 rows .*row 0: .*row 4: .*and 4 more"):
        read([{"prompt": "x", "completion": ""}] * 9)


def test_other_types_than_data_sets_are_refused():
    with pytest.raises(UserError, match=r"is of type list.*Dataset.from_list"):
        reader().prepare([FORMS["messages"]], "train")
    with pytest.raises(UserError, match="has a transform"):
        reader().prepare(Dataset.from_list([FORMS["messages"]]).with_transform(lambda rows: rows), "train")


def test_an_empty_data_set_is_an_error():
    with pytest.raises(UserError, match="has no rows"):
        reader().prepare(Dataset.from_dict({"prompt": [], "completion": []}), "train")

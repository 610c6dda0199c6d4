"""refusal, unused_texts: columns that are not part of the pair; refused if dropping them changes what is learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...data.fields import Fields, Notes
from ...data.formats.conversion import pair_from_record
from ...data.formats.format_types import CONVERSATION_FIELDS
from ...data.formats.messages import (
    CALL_KEYS,
    REASONING_KEYS,
    ROLE_KEYS,
    as_turns,
    first_value,
    is_filled,
    parse_literal,
    role_of,
    tool_part_of,
)
from ...data.formats.record_view import MEDIA_FIELDS, TOOL_FIELDS, RecordView
from ...data.sources.json_containers import is_record

_COLUMNS = {
    **dict.fromkeys(TOOL_FIELDS, "tools are not part of the prompt"),
    "chat_template_kwargs": "one chat template serves all rows; set tokenizer.chat_template",
    **dict.fromkeys(MEDIA_FIELDS, "only text is trained"),
}
# KTO's column, and that of examples/pairs.jsonl; false marks a mismatched response
QUALITY_FLAGS = ("label", "aligned")
_TURN_KEYS = (*CALL_KEYS, *REASONING_KEYS)


def refusal(record: Mapping[str, Any]) -> str:
    """Return the reason why a row cannot be trained; empty if it can."""
    for path, view in _objects(record):
        for name, why in _COLUMNS.items():
            if is_filled(view.get(name)):
                return f"its column '{path}{view.name(name)}' would be dropped: {why}"
        for name in QUALITY_FLAGS:
            if view.get(name) is False:
                return (
                    f"its column '{path}{view.name(name)}' is false, which marks a bad response: filter such rows out"
                )
    if not isinstance(record.get("synthetic"), (bool, type(None))):
        return f"its column 'synthetic' must be true or false, got {record['synthetic']!r}"
    for name, turns in _conversations(record):
        for number, turn in enumerate(turns, 1):
            if problem := _turn_problem(turn, f"turn {number} of {name!r}"):
                return problem
        if turns[-1].get("weight") == 0:
            return f"the last turn of {name!r} has the weight 0: filter such rows out"
    return ""


def _turn_problem(turn: Mapping[str, Any], where: str) -> str:
    view = RecordView(turn)
    key = next((key for key in _TURN_KEYS if is_filled(view.get(key))), None)
    if key is not None:
        return f"{view.name(key)!r} of {where} would be dropped: only the text of turns is trained"
    if role_of(turn) in ("tool", "call"):
        return f"{where} has the role {first_value(turn, ROLE_KEYS)!r}: tool calls are not part of the prompt"
    if part := tool_part_of(turn):
        return f"{where} has a part of type {part!r}: tool calls are not part of the prompt"
    return ""


def unused_texts(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns whose text is not part of the pair in some of the records."""
    notes = Notes()
    for number, record in enumerate(records):
        pair_from_record(record, number, Fields(), unit="row", notes=notes)
    return list(notes.unused)


def _objects(record: Mapping[str, Any]) -> Iterator[tuple[str, RecordView]]:
    """Yield the record and its objects that a pair may be read from, each with the path before its fields."""
    yield "", RecordView(record)
    for name, value in record.items():
        inner = parse_literal(value)
        if isinstance(inner, Mapping) and (
            any(field in inner for field in CONVERSATION_FIELDS) or (is_record(inner) and not is_record(record))
        ):
            yield f"{name}.", RecordView(inner)


def _conversations(record: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    for path, view in _objects(record):
        for name, value in view.record.items():
            turns = as_turns(value)
            if isinstance(turns, list) and turns and all(isinstance(turn, Mapping) for turn in turns):
                yield path + name, turns

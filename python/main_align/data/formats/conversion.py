"""pair_from_record: the conversion of a record in any known format to a Pair.

The formats of record_formats.py are tried in order. `input` and `context` are appended to the instruction; a system
field and a history precede the pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..fields import NO_FIELDS, Fields, Notes
from ..pairs import NOT_UNICODE, Pair, Turn, is_unicode
from .format_types import Conversation, RecordFormat, TwoFields, append_texts
from .messages import (
    InvalidRecord,
    Message,
    content_text,
    context_of,
    exchanges_of,
    is_null,
    parse_literal,
    split_last_pair,
)
from .record_formats import RECORD_FORMATS
from .record_view import RecordView

INPUT_FIELDS = ("input", "context")
SYSTEM_FIELDS = ("system", "system_prompt", "system_message", "system_instruction")
HISTORY_FIELDS = ("history", "chat_history")


def pair_from_record(
    record: Mapping[str, Any],
    line: int,
    fields: Fields = NO_FIELDS,
    *,
    unit: str = "line",
    notes: Notes | None = None,
) -> Pair:
    """Convert one record to a Pair.

    Args:
        record: field names and values.
        line: position of the record, counted from 1.
        fields: field names that take precedence over the recognised formats.
        unit: unit of `line`, "line" or "row".
        notes: collects the names of text fields that are not used. Default: none are collected.

    Returns:
        The Pair. Bad data does not raise; the Pair has a status other than ok and a reason. A side without text is
        left to `pairs.check_text`, because some callers need one side only.
    """
    view = RecordView(record)
    try:
        view, record_format = _resolve(view, fields)
        instruction, response, context = _read(view, record_format, fields)
        for name, text in (("instruction", instruction), ("response", response)):
            _check_encoding(name, text)
        for turn in context:
            _check_encoding(f"{turn.role} turn", turn.text)
    except InvalidRecord as invalid:
        status, reason = invalid.args
        sides: dict[str, Any] = {"status": status, "reason": f"{unit} {line}: {reason}"}
    else:
        sides = {"instruction": instruction, "response": response, "context": context}
        if notes is not None:
            texts = (instruction, response, *(turn.text for turn in context))
            unused = (name for name in view.unused_texts() if not any(view.record[name] in text for text in texts))
            notes.unused.update(dict.fromkeys([*unused, *view.unread_parts(), *record_format.ignored_parts(view)], 1))
    own_id = _label(view, fields)
    return Pair(str(line) if own_id is None else own_id, line, unit=unit, own_id=own_id is not None, **sides)


def can_hold_pairs(names: Sequence[str]) -> bool:
    """Return True if a table with these columns matches a record format."""
    view = RecordView(dict.fromkeys(names, " "))
    return any(record_format.matches_columns(view) for record_format in RECORD_FORMATS)


def _label(view: RecordView, fields: Fields) -> str | None:
    value = view.at(fields.id) if fields.id else view.get("id")
    return None if is_null(value) or value == "" else as_label(value)


def as_label(value: Any) -> str:
    """Return a value as the text of an id: JSON for lists and objects, `str` for other types."""
    if isinstance(value, (dict, list, bool)):
        value = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return str(value).encode("utf-8", "backslashreplace").decode()


def _resolve(view: RecordView, fields: Fields) -> tuple[RecordView, RecordFormat]:
    """Return the format of a record, and the view of the object that matches it."""
    if fields.instruction and fields.response:
        return view, _chosen_fields(view, fields.instruction, fields.response)
    if record_format := _recognise(view, fields.preference):
        return view, record_format
    return _unwrapped(view, fields.preference)


def _read(view: RecordView, record_format: RecordFormat, fields: Fields) -> tuple[str, str, tuple[Turn, ...]]:
    x, y, before = split_last_pair(record_format.messages(view, fields.preference), record_format.main_field(view))
    x = append_texts(x, *_inputs(view, fields, known=not isinstance(record_format, Conversation)))
    systems = next((place for place, message in enumerate(before) if message.role != "system"), len(before))
    earlier = [*_system(view, fields), *before[:systems], *_history(view), *before[systems:]]
    return x, y, context_of(earlier)


def _chosen_fields(view: RecordView, instruction: str, response: str) -> TwoFields:
    for name in (instruction, response):
        if not view.has(name):
            raise InvalidRecord("missing_field", f"no field {name!r}; the row has {_names(view.record)}")
        if is_null(view.at(name)):
            raise InvalidRecord("missing_field", f"the field {name!r} is null")
    return TwoFields(instruction, (response,), by_path=True)


def _recognise(view: RecordView, preference: str) -> RecordFormat | None:
    """Return the first format whose fields are not empty, else the first whose fields are not null."""
    for nonempty in (True, False):
        for record_format in RECORD_FORMATS:
            if record_format.matches(view, preference, nonempty):
                return record_format
    return None


def _unwrapped(view: RecordView, preference: str) -> tuple[RecordView, RecordFormat]:
    """Return the only inner object that matches a record format. Its view also has the outer fields."""
    matches = []
    for name, value in view.record.items():
        value = parse_literal(value)
        if isinstance(value, Mapping) and (record_format := _recognise(RecordView(value), preference)):
            rest = {key: other for key, other in view.record.items() if key != name}
            matches.append((RecordView({**rest, **value}), record_format))
    if len(matches) == 1:
        return matches[0]
    if preference != "chosen":
        raise InvalidRecord("missing_field", f"no {preference} response; the row has {_names(view.record)}")
    for record_format in RECORD_FORMATS:
        record_format.check_complete(view)
    names = _names(view.record) or "no fields"
    raise InvalidRecord(
        "missing_field", f"found {names}; name the two sides with --instruction-field and --response-field"
    )


def _inputs(view: RecordView, fields: Fields, *, known: bool) -> list[str]:
    """Return the texts to append to the instruction. Only a field named by the user is appended to a conversation."""
    if fields.input:
        return [view.text_at(fields.input)]
    return [_input_text(view, name) for name in INPUT_FIELDS if known and not view.is_used(name)]


def _input_text(view: RecordView, name: str) -> str:
    value = view.get(name)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        view.use(name)
        return "\n".join(value)
    return "" if is_null(value) else view.text(name)


def _system(view: RecordView, fields: Fields) -> list[Message]:
    names = [fields.system] if fields.system else [name for name in SYSTEM_FIELDS if not view.is_used(name)]
    texts = []
    for name in names:
        value = view.at(name) if fields.system else view.get(name)
        if not is_null(value) and value != []:
            view.use(name)
            texts.append(content_text(value, f"the field {name!r}"))
    return [Message("system", text) for text in texts]


def _history(view: RecordView) -> list[Message]:
    """Return the turns of a history. A history of plain text is left unused."""
    for name in HISTORY_FIELDS:
        value = parse_literal(view.get(name))
        if isinstance(value, (list, dict)) and value:
            view.use(name)
            return exchanges_of(value, name)
    return []


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, record))


def _check_encoding(name: str, text: str) -> None:
    if not is_unicode(text):
        raise InvalidRecord("bad_encoding", f"the {name} {NOT_UNICODE}")

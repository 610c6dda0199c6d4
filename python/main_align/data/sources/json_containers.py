"""rows_in, listed_rows, is_message: rows in one JSON object: a list in a field, columns, or an object of rows by id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import UserError
from ..formats.format_types import CONVERSATION_FIELDS, TwoFields
from ..formats.messages import CALL_KEYS, ROLE_KEYS, TEXT_KEYS, first_value, normalized, parse_literal
from ..formats.record_formats import RECORD_FORMATS
from ..formats.record_view import RecordView

_SIDE_FIELDS = {
    normalized(name) for d in RECORD_FORMATS if isinstance(d, TwoFields) for name in (d.instruction, *d.responses)
}


def rows_in(value: Any, name: str) -> list[Any]:
    """Return the rows in a JSON value. An object that contains no rows is itself a row.

    Args:
        value: the parsed JSON.
        name: the file, for messages.

    Raises:
        UserError: several lists could be the rows.
    """
    if (rows := listed_rows(value, name)) is not None:
        return rows
    if not isinstance(value, Mapping) or not value or is_record(value):
        return [value]
    if all(isinstance(inner, list) for inner in value.values()):
        return _transposed(value, name)
    if all(isinstance(inner, Mapping) for inner in value.values()):
        return _rows_of_objects(value)
    return [value]


def listed_rows(value: Any, name: str) -> list[Any] | None:
    """Return the list of rows in an object, or None if it has no such list.

    Args:
        value: the parsed JSON.
        name: the file, for messages.

    Raises:
        UserError: several lists could be the rows.
    """
    if not isinstance(value, Mapping) or is_record(value):
        return None
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(columns, row, strict=False)) for row in data]  # pandas, orient="split"
    lists = [key for key, inner in value.items() if _is_list_of_rows(inner)]
    if len(lists) > 1:
        raise UserError(
            f"{name} has several lists of rows: {', '.join(map(repr, lists))}; write one of them to a separate file"
        )
    if lists:
        return list(value[lists[0]])
    deeper = [item for item in value.values() if isinstance(item, Mapping) and not is_record(item)]
    deeper = [item for item in deeper if any(map(_is_list_of_rows, item.values()))]
    return listed_rows(deeper[0], name) if len(deeper) == 1 else None


def is_record(value: Mapping[str, Any]) -> bool:
    """Return True if an object is a row in a known record format."""
    view = RecordView(value)
    return any(
        record_format.matches(view, preference, False)
        for record_format in RECORD_FORMATS
        for preference in ("chosen", "rejected")
    ) and not (_is_columns(value))


def _is_columns(value: Mapping[str, Any]) -> bool:
    """Return True if the fields of both sides contain a column each, not text or turns."""
    sides = [_is_column(inner) for key, inner in value.items() if normalized(key) in _SIDE_FIELDS]
    turns = [_is_column_of_turns(inner) for key, inner in value.items() if normalized(key) in CONVERSATION_FIELDS]
    return all(sides + turns) and bool(sides + turns)


def _is_column(inner: Any) -> bool:
    if isinstance(inner, Mapping):
        return not any(key in inner for key in (*ROLE_KEYS, *CONVERSATION_FIELDS))
    return isinstance(inner, list) and not any(isinstance(item, Mapping) and is_message(item) for item in inner)


def _is_column_of_turns(inner: Any) -> bool:
    if isinstance(inner, Mapping):
        return not any(key in inner for key in ROLE_KEYS)
    return isinstance(inner, list) and all(isinstance(parse_literal(item), list) for item in inner)


def _is_list_of_rows(inner: Any) -> bool:
    return (
        isinstance(inner, list)
        and bool(inner)
        and all(isinstance(row, Mapping) for row in inner)
        and not all(is_message(row) for row in inner)
    )


def is_message(item: Mapping[str, Any]) -> bool:
    """Return True for one turn of a conversation: it has a role and a content. A row may have an author, too."""
    has_role = isinstance(first_value(item, ROLE_KEYS), str)
    return has_role and any(key in item for key in (*TEXT_KEYS, *CALL_KEYS)) and not is_record(item)


def _transposed(value: Mapping[str, list[Any]], name: str) -> list[Any]:
    lengths = {key: len(column) for key, column in value.items()}
    if len(set(lengths.values())) != 1:
        each = ", ".join(f"{key!r} {length}" for key, length in lengths.items())
        raise UserError(f"{name} has columns of different lengths: {each}")
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _rows_of_objects(value: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Return the rows of pandas' default layout, an object of index keys per column, or of a dict of rows by id."""
    known = any(normalized(key) in (*_SIDE_FIELDS, *CONVERSATION_FIELDS) for key in value)
    numbered = all(key.lstrip("-").isdigit() for inner in value.values() for key in inner)
    if not known and not numbered:
        return [{"id": key, **row} for key, row in value.items()]
    index = dict.fromkeys(key for column in value.values() for key in column)
    return [{name: column.get(key) for name, column in value.items()} for key in index]

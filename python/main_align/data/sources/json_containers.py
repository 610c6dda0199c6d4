"""The rows inside one JSON object: a list under a name, columns of pandas or `datasets`, or a dict of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import UserError
from ..formats.dialect import CONVERSATIONS, TwoFields
from ..formats.dialects import DIALECTS
from ..formats.turns import ROLE_KEYS, parsed, plain_name
from ..formats.view import View

_FIELDS = {plain_name(name) for d in DIALECTS if isinstance(d, TwoFields) for name in (d.left, *d.rights)}


def rows_in(value: Any, name: str) -> list[Any]:
    """The rows that a JSON object holds; an object that holds none is a row itself.

    Raises UserError, naming the fields, where several lists could be the rows.
    """
    if not isinstance(value, Mapping) or not value or is_record(value):
        return [value]
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(columns, row, strict=False)) for row in data]  # pandas, orient="split"
    lists = [key for key, inner in value.items() if _is_list_of_rows(inner)]
    if len(lists) > 1:
        raise UserError(
            f"{name} holds several lists of rows: {', '.join(map(repr, lists))}; write one of them to a file of its own"
        )
    if lists:
        return list(value[lists[0]])
    if all(isinstance(inner, list) for inner in value.values()):
        return _transposed(value, name)
    deeper = [item for item in value.values() if isinstance(item, Mapping) and not is_record(item)]
    deeper = [item for item in deeper if any(map(_is_list_of_rows, item.values()))]
    if len(deeper) == 1:
        return rows_in(deeper[0], name)
    if all(isinstance(inner, Mapping) for inner in value.values()):
        return _rows_of_objects(value)
    return [value]


def is_record(value: Mapping[str, Any]) -> bool:
    """True where an object is a row of a known form."""
    view = View(value)
    return any(dialect.fits(view, side, False) for dialect in DIALECTS for side in ("chosen", "rejected")) and not (
        _is_columns(value)
    )


def _is_columns(value: Mapping[str, Any]) -> bool:
    """True where the fields of both sides hold a column each, not a side."""
    sides = [_is_column(inner) for key, inner in value.items() if plain_name(key) in _FIELDS]
    turns = [_is_column_of_turns(inner) for key, inner in value.items() if plain_name(key) in CONVERSATIONS]
    return all(sides + turns) and bool(sides + turns)


def _is_column(inner: Any) -> bool:
    if isinstance(inner, Mapping):
        return not any(key in inner for key in (*ROLE_KEYS, *CONVERSATIONS))
    return isinstance(inner, list) and not any(isinstance(item, Mapping) and _is_message(item) for item in inner)


def _is_column_of_turns(inner: Any) -> bool:
    if isinstance(inner, Mapping):
        return not any(key in inner for key in ROLE_KEYS)
    return isinstance(inner, list) and all(isinstance(parsed(item), list) for item in inner)


def _is_list_of_rows(inner: Any) -> bool:
    return (
        isinstance(inner, list)
        and bool(inner)
        and all(isinstance(row, Mapping) for row in inner)
        and not all(_is_message(row) for row in inner)
    )


def _is_message(item: Mapping[str, Any]) -> bool:
    return any(isinstance(item.get(key), str) for key in ROLE_KEYS)


def _transposed(value: Mapping[str, list[Any]], name: str) -> list[Any]:
    lengths = {key: len(column) for key, column in value.items()}
    if len(set(lengths.values())) != 1:
        found = ", ".join(f"{key!r} {length}" for key, length in lengths.items())
        raise UserError(f"{name} holds columns of different lengths: {found}")
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _rows_of_objects(value: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """pandas' default (a column an object, its keys the index), else a dict of rows, whose keys are their ids."""
    known = any(plain_name(key) in (*_FIELDS, *CONVERSATIONS) for key in value)
    numbered = all(key.lstrip("-").isdigit() for inner in value.values() for key in inner)
    if not known and not numbered:
        return [{"id": key, **row} for key, row in value.items()]
    index = dict.fromkeys(key for column in value.values() for key in column)
    return [{name: column.get(key) for name, column in value.items()} for key in index]

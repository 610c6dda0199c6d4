"""Pairs in memory, in whatever holds them: lists, tuples, data frames, dicts of lists."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import UserError
from .formats.record import Fields, Notes, pair_from_record
from .formats.turns import is_null
from .pairs import Pair
from .read import check_fields
from .sources.json_files import row_of_value

log = logging.getLogger(__name__)


def is_columns(data: Any, fields: Fields) -> bool:
    """True for a dict of lists, one list a field; a dict that is readable as one pair is none."""
    if not isinstance(data, Mapping) or not data:
        return False
    columns = [_plain(column) for column in data.values()]
    if not all(isinstance(column, list) for column in columns) or len({len(column) for column in columns}) != 1:
        return False
    return pair_from_record(_plain(data), 1, fields).status != "ok"


def pairs_in(data: Any, fields: Fields) -> Iterator[Pair]:
    """The pairs of an iterable of records, a data frame, a table, a dict of lists or one record, in order.

    A record is a Pair, a mapping of any known form, an (instruction, response) tuple, or a list of messages. Text
    fields that are not used are logged once, as a warning.

    Raises UserError for what holds no records.
    """
    check_fields(fields)
    notes = Notes()
    for number, record in enumerate(_records(data, fields), 1):
        yield _pair(record, number, fields, notes)
    if notes.unused:
        log.warning(notes.sentence())


def count(data: Any, fields: Fields) -> int | None:
    """The number of pairs, where it is known before they are read."""
    if isinstance(data, Mapping):
        return len(next(iter(data.values()))) if is_columns(data, fields) else 1
    return len(data) if hasattr(data, "__len__") else None


def _records(data: Any, fields: Fields) -> Iterable[Any]:
    if isinstance(data, (str, bytes)):
        raise UserError("pairs are records, not text; to score a file use score_file or `main-align score`")
    if hasattr(data, "to_pylist"):  # pyarrow
        return data.to_pylist()
    if hasattr(data, "iter_rows") and hasattr(data, "columns"):  # polars
        return data.iter_rows(named=True)
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # pandas
        return data.to_dict("records")
    if isinstance(data, Mapping):
        if any(hasattr(value, "column_names") for value in data.values()):
            raise UserError(f"this is a dict of data sets, {', '.join(map(str, data))}: give one of them")
        if is_columns(data, fields):
            return (dict(zip(data, row, strict=True)) for row in zip(*map(_plain, data.values()), strict=True))
        return [data]
    if not isinstance(data, Iterable):
        raise UserError(f"pairs are a list of records, a data frame or a dict of lists, not {type(data).__name__}")
    return data


def _pair(record: Any, number: int, fields: Fields, notes: Notes) -> Pair:
    if isinstance(record, Pair):
        return record
    record = _plain(record)
    if isinstance(record, str):
        raise UserError(f"row {number} is text, not a pair: give (instruction, response) tuples or dicts in a list")
    row = row_of_value(record, number, "row")
    if row.record is None:
        return Pair(str(number), number, status=row.status, reason=row.reason, unit="row")
    return pair_from_record(row.record, number, fields, unit="row", notes=notes)


def _plain(value: Any) -> Any:
    """Arrays and tuples as lists, numpy's scalars as Python's, pandas' missing values as None."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy, torch, pandas.Series
        return _plain(value.tolist())
    return None if is_null(value) or type(value).__name__ in ("NAType", "NaTType") else value

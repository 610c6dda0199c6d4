"""iter_pairs, count_pairs, is_dict_of_lists: pairs from lists, tuples, data frames and dicts of lists."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import UserError, UserTypeError
from .fields import Fields, Notes
from .formats.conversion import pair_from_record
from .formats.messages import is_null
from .pairs import Pair
from .sources.json_files import row_of_value

log = logging.getLogger(__name__)


def is_dict_of_lists(data: Any, fields: Fields) -> bool:
    """Return True for a dict of lists, one list per field, and False for a dict that is one record."""
    if not isinstance(data, Mapping) or not data:
        return False
    columns = [_to_python(column) for column in data.values()]
    if not all(isinstance(column, list) for column in columns) or len({len(column) for column in columns}) != 1:
        return False
    return pair_from_record(_to_python(data), 1, fields).status != "ok"


def iter_pairs(data: Any, fields: Fields, logged: set[str] | None = None) -> Iterator[Pair]:
    """Yield the pairs of an iterable of records, a data frame, a table, a dict of lists or one record, in order.

    A record is a Pair, a mapping in any record format, an (instruction, response) tuple, or a list of messages.
    Unused text fields are logged once, as a warning.

    Args:
        data: the records.
        fields: field names that take precedence over the recognised record formats.
        logged: names of the unused fields that earlier calls logged; those of this call are added. Default: none.

    Raises:
        UserError: `data` is not a collection of records.
    """
    fields.check()
    notes, logged = Notes(), set() if logged is None else logged
    for number, record in enumerate(_records(data, fields), 1):
        yield _pair(record, number, fields, notes)
    for name in logged:
        del notes.unused[name]
    if notes.unused:
        log.warning(notes.warning())
        logged.update(notes.unused)


def count_pairs(data: Any, fields: Fields) -> int | None:
    """Return the number of pairs, or None if it is unknown before they are read.

    Raises:
        UserError: `data` is not a collection of records.
    """
    _refuse_ray(data)
    if isinstance(data, Mapping):
        return len(next(iter(data.values()))) if is_dict_of_lists(data, fields) else 1
    return len(data) if hasattr(data, "__len__") else None


def _refuse_ray(data: Any) -> None:
    if type(data).__module__.startswith("ray.data."):
        raise UserTypeError(
            "the pairs are a Ray data set, which its workers score: give main_align.ray.ScoreStage to its map_batches, "
            "or its rows, .take_all()"
        )


def _records(data: Any, fields: Fields) -> Iterable[Any]:
    _refuse_ray(data)
    if isinstance(data, (str, bytes)):
        raise UserTypeError("pairs are records, not text; to score a file use score_file or `main-align score`")
    if hasattr(data, "to_pylist"):  # pyarrow
        return data.to_pylist()
    if hasattr(data, "to_dicts"):  # polars, DuckDB
        return data.to_dicts()
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # pandas
        return data.to_dict("records")
    if isinstance(data, Mapping):
        if any(hasattr(value, "column_names") for value in data.values()):
            raise UserError(f"the argument is a dict of data sets, {', '.join(map(str, data))}: give one of them")
        if is_dict_of_lists(data, fields):
            return (dict(zip(data, row, strict=True)) for row in zip(*map(_to_python, data.values()), strict=True))
        return [data]
    if not isinstance(data, Iterable):
        raise UserTypeError(f"pairs are a list of records, a data frame or a dict of lists, not {type(data).__name__}")
    return data


def _pair(record: Any, number: int, fields: Fields, notes: Notes) -> Pair:
    if isinstance(record, Pair):
        return record
    record = _to_python(record)
    if isinstance(record, str):
        raise UserError(f"row {number} is text, not a pair: give (instruction, response) tuples or dicts in a list")
    row = row_of_value(record, number, "row")
    if row.record is None:
        return Pair(str(number), number, status=row.status, reason=row.reason, unit="row")
    return pair_from_record(row.record, number, fields, unit="row", notes=notes)


def _to_python(value: Any) -> Any:
    """Convert arrays and tuples to lists, numpy scalars to Python scalars, missing values of pandas to None."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _to_python(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_python(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy, torch, pandas.Series
        return _to_python(value.tolist())
    return None if is_null(value) or type(value).__name__ in ("NAType", "NaTType") else value

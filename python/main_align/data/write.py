"""write_rows, check_output, check_place, format_errors, to_json, to_document: .parquet, .jsonl and .csv files of rows.

A file is written to a temporary path, flushed to the disk and renamed. The same rows give the same bytes. Floats are
written with full precision (repr). A missing value is null, or an empty cell in .csv.
"""

from __future__ import annotations

import csv
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from ..errors import UserError
from .atomic import atomic_write
from .pairs import is_unicode

ROW_GROUP = 16384  # rows of a .parquet file that are written together
EXCERPT = 30  # characters before one that cannot be written


def check_output(path: Path) -> None:
    """Raise UserError unless a file of rows can be written to `path`."""
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"{path}: the ending selects the format; use one of {OUTPUT_ENDINGS}")
    check_place(path)


def check_place(path: Path) -> None:
    """Raise UserError unless `path` can be a file of an existing folder."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file name")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], schema: Any) -> None:
    """Write rows to `path`, in the format of its ending.

    Args:
        path: the file.
        rows: field names and values of each row.
        schema: pyarrow schema with the columns of .csv and the types of .parquet. A row of .jsonl has its own fields.

    Raises:
        UserError: the path is not usable, or a value does not fit the format.
    """
    check_output(path)
    with atomic_write(path) as temporary:
        writer = WRITERS[path.suffix.lower()](temporary, schema)
        try:
            for number, row in enumerate(rows, 1):
                writer.write(number, row)
        finally:
            writer.close()


class _Writer(ABC):
    @abstractmethod
    def __init__(self, path: Path, schema: Any) -> None: ...

    @abstractmethod
    def write(self, number: int, row: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


@contextmanager
def format_errors(
    name: str,
    rows: Sequence[Mapping[str, Any]] = (),
    write_field: Callable[[str, Any], object] | None = None,
    *,
    first: int | None = 1,
) -> Iterator[None]:
    """Raise UserError, with the field and the row, for the errors of a value that a format does not support.

    Args:
        name: the format or the file, for the message.
        rows: the rows that are written.
        write_field: called for the name and the value of each field, in order; raises the error of the first that does
            not fit. Default: no field is named.
        first: number of the first row. None: the rows are no rows of the output. Default 1.
    """
    import pyarrow as pa

    errors = (
        _UnsupportedTypeError,
        UnicodeEncodeError,
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
        OverflowError,
    )
    try:
        yield
    except errors as error:
        field, cause = "a field", error
        for place, row in enumerate(rows if write_field else ()):
            for key, value in row.items():
                try:
                    write_field(key, value)  # type: ignore[misc]
                except errors as found:
                    field = f"field {key!r}" + ("" if first is None else f" of row {first + place} of the output")
                    raise UserError(_refusal(field, name, found)) from None
        raise UserError(_refusal(field, name, cause)) from None


def _refusal(field: str, name: str, error: Exception) -> str:
    remedy, problem = ".jsonl", str(error)
    if isinstance(error, _UnsupportedTypeError):
        remedy = ".parquet"
    if isinstance(error, UnicodeEncodeError):
        problem = f"{error.object[max(0, error.start - EXCERPT) : error.end]!r} is not valid Unicode text"
    return f"{field} cannot be written to {name} ({problem}); write {remedy} instead"


class _UnsupportedTypeError(UserError):
    """A value of a type that JSON lacks."""


class _ParquetWriter(_Writer):
    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        def declare(name: str, kind: Any) -> None:
            ParquetWriter(pa.BufferOutputStream(), pa.schema([(name, kind)])).close()

        self.schema = schema
        types = dict(zip(schema.names, schema.types, strict=True))
        with format_errors(".parquet", [types], declare, first=None):
            self.file = ParquetWriter(path, schema, compression="zstd")
        self.rows: list[Mapping[str, Any]] = []
        self.written = 0

    def write(self, number: int, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == ROW_GROUP:
            self._flush()

    def close(self) -> None:
        try:
            self._flush()
        finally:
            self.file.close()

    def _flush(self) -> None:
        import pyarrow as pa

        def write_field(name: str, value: Any) -> None:
            if name in self.schema.names:
                pa.array([value], self.schema.field(name).type)

        rows, self.rows = self.rows, []
        if rows:
            with format_errors(".parquet", rows, write_field, first=self.written + 1):
                self.file.write_table(pa.Table.from_pylist(rows, schema=self.schema))
        self.written += len(rows)


class _JsonlWriter(_Writer):
    def __init__(self, path: Path, schema: Any) -> None:
        self.file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, number: int, row: Mapping[str, Any]) -> None:
        with format_errors(".jsonl", [row], lambda _, value: to_json(value), first=number):
            self.file.write(to_json(row) + "\n")

    def close(self) -> None:
        self.file.close()


def to_json(value: Any) -> str:
    """Return one line of JSON. Lone surrogates are escaped; NaN and infinity, which JSON lacks, become null."""
    return _dumped(value)


def to_document(value: Any) -> str:
    """Return the content of a .json file, one value per line, with escapes and nulls as to_json has them."""
    return _dumped(value, indent=2) + "\n"


def _dumped(value: Any, **options: Any) -> str:
    options |= {"default": _to_text, "allow_nan": False}
    try:
        text = json.dumps(value, ensure_ascii=False, **options)
    except ValueError:
        value = _nan_to_null(value)
        text = json.dumps(value, ensure_ascii=False, **options)
    return text if is_unicode(text) else json.dumps(value, **options)


def _nan_to_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _nan_to_null(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_to_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_text(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    if isinstance(value, (Decimal, UUID, timedelta)):
        return str(value)
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode("utf-8")
    raise _UnsupportedTypeError(f"a value of type {type(value).__name__} cannot be written as text")


class _CsvWriter(_Writer):
    def __init__(self, path: Path, schema: Any) -> None:
        self.names = list(schema.names)
        self.file = path.open("w", encoding="utf-8", newline="")
        # csv quotes a text with a character of the line ending, and must quote both \r and \n; the file has \n alone
        lines = SimpleNamespace(write=lambda line: self.file.write(line.removesuffix("\r\n") + "\n"))
        self.csv = csv.writer(lines, lineterminator="\r\n")
        with format_errors(".csv", [dict.fromkeys(self.names)], _encode_cell, first=None):
            self.csv.writerow(self.names)

    def write(self, number: int, row: Mapping[str, Any]) -> None:
        with format_errors(".csv", [row], _encode_cell, first=number):
            self.csv.writerow([_cell(row.get(name)) for name in self.names])

    def close(self) -> None:
        self.file.close()


def _cell(value: Any) -> Any:
    if isinstance(value, bytes):
        return _to_text(value)
    return to_json(value) if isinstance(value, (dict, list, bool)) else value


def _encode_cell(name: str, value: Any) -> None:
    name.encode()
    str(_cell(value)).encode()


WRITERS: dict[str, type[_Writer]] = {".parquet": _ParquetWriter, ".jsonl": _JsonlWriter, ".csv": _CsvWriter}
OUTPUT_ENDINGS = ", ".join(WRITERS)

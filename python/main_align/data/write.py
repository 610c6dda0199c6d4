"""Writes score files (.parquet, .jsonl, .csv by the ending): they appear whole or not at all.

A file is written beside its place, flushed to the disk and renamed. The same rows give the same
bytes. Floats keep every digit (repr); what is absent is null, or an empty cell in .csv.
"""

from __future__ import annotations

import csv
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from ..errors import UserError
from .atomic import replacing

ROW_GROUP = 16384
ENDINGS = (".parquet", ".jsonl", ".csv")


def check_ending(path: Path) -> None:
    """Raise UserError unless a row file of this ending can be written, here."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path}: the ending says the format; use one of {', '.join(ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file name")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], schema: Any) -> None:
    """Write rows under a pyarrow schema: the columns of .csv, and the types of .parquet.

    .jsonl needs none: each row is written with the fields it has.
    """
    check_ending(path)
    kind: dict[str, Callable[[Path, Any], _Writer]]
    kind = {".parquet": _ParquetWriter, ".jsonl": _JsonlWriter, ".csv": _CsvWriter}
    with replacing(path) as temporary:
        writer = kind[path.suffix.lower()](temporary, schema)
        try:
            for row in rows:
                writer.write(row)
        finally:
            writer.close()


class _Writer(ABC):
    @abstractmethod
    def __init__(self, path: Path, schema: Any) -> None: ...

    @abstractmethod
    def write(self, row: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


@contextmanager
def _parquet_errors() -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise UserError(f"a field does not fit .parquet ({error}); write .jsonl instead") from None


class _ParquetWriter(_Writer):
    def __init__(self, path: Path, schema: Any) -> None:
        from pyarrow.parquet import ParquetWriter

        self.schema = schema
        with _parquet_errors():
            self.file = ParquetWriter(path, schema, compression="zstd")
        self.rows: list[Mapping[str, Any]] = []

    def write(self, row: Mapping[str, Any]) -> None:
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

        rows, self.rows = self.rows, []
        if rows:
            with _parquet_errors():
                self.file.write_table(pa.Table.from_pylist(rows, schema=self.schema))


class _JsonlWriter(_Writer):
    def __init__(self, path: Path, schema: Any) -> None:
        self.file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, row: Mapping[str, Any]) -> None:
        self.file.write(to_json(row) + "\n")

    def close(self) -> None:
        self.file.close()


def to_json(value: Any) -> str:
    """One line of JSON: readable text where Unicode allows it, escapes for lone surrogates, null for NaN and infinity,
    which JSON has not."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:
        value = _finite(value)
        text = json.dumps(value, ensure_ascii=False, default=_plain)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, default=_plain)
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    if isinstance(value, (Decimal, UUID, timedelta)):
        return str(value)
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode("utf-8")
    raise UserError(f"a value of type {type(value).__name__} does not fit .jsonl; use .parquet")


class _CsvWriter(_Writer):
    def __init__(self, path: Path, schema: Any) -> None:
        self.names = list(schema.names)
        self.file = path.open("w", encoding="utf-8", newline="")
        self.csv = csv.writer(self.file, lineterminator="\n")
        self.csv.writerow(self.names)

    def write(self, row: Mapping[str, Any]) -> None:
        self.csv.writerow([_cell(row.get(name)) for name in self.names])

    def close(self) -> None:
        self.file.close()


def _cell(value: Any) -> Any:
    return to_json(value) if isinstance(value, (dict, list, bool)) else value

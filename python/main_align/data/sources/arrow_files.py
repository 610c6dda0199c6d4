"""BatchFile, ParquetFile, ArrowFile, batch_rows, output_schema: files of Arrow record batches."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from ...errors import UserError
from .source import FileSource, Row

BATCH_ROWS = 1024


class BatchFile(FileSource):
    """A file of record batches, read one batch at a time."""

    can_jump = True

    @abstractmethod
    def batches(self, start: int = 0, *, columns: Sequence[str] | None = None, size: int = BATCH_ROWS) -> Iterator[Any]:
        """Yield the rows from number `start` on as record batches in order.

        Args:
            start: number of the first row, counted from 0. Default 0.
            columns: names of the columns to read. Default: all.
            size: largest number of rows of a batch. Default 1024.
        """

    def rows(self) -> Iterator[Row]:
        return self.rows_from(0)

    def rows_from(self, start: int) -> Iterator[Row]:
        return batch_rows(self.batches(start), start)


class ParquetFile(BatchFile):
    """A .parquet file."""

    def batches(self, start: int = 0, *, columns: Sequence[str] | None = None, size: int = BATCH_ROWS) -> Iterator[Any]:
        with self._open() as file:
            first = 0
            while first < file.num_row_groups and start >= file.metadata.row_group(first).num_rows:
                start -= file.metadata.row_group(first).num_rows
                first += 1
            groups = range(first, file.num_row_groups)
            batches = file.iter_batches(batch_size=size, row_groups=groups, columns=columns)
            yield from _without_first(batches, start)

    def count(self) -> tuple[int, int]:
        with self._open() as file:
            return int(file.metadata.num_rows), 0

    def schema(self) -> Any:
        with self._open() as file:
            return output_schema(file.schema_arrow)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(pa.OSFile(os.fsencode(self.file))) as file:  # pyarrow encodes other paths as UTF-8
                yield file
        except (pa.ArrowInvalid, OSError) as error:  # in the rows too
            raise UserError(f"{self.name} is not a readable parquet file: {error}") from None


class ArrowFile(BatchFile):
    """An .arrow file: an IPC file (Feather), or an IPC stream as in the cache of `datasets`."""

    def batches(self, start: int = 0, *, columns: Sequence[str] | None = None, size: int = BATCH_ROWS) -> Iterator[Any]:
        with self._open() as reader:
            has_index = hasattr(reader, "num_record_batches")
            batches = map(reader.get_batch, range(reader.num_record_batches)) if has_index else reader
            for batch in _without_first(batches, start):
                chosen = batch if columns is None else batch.select(columns)
                for first in range(0, batch.num_rows, size):
                    yield chosen.slice(first, size)

    def count(self) -> tuple[int, int]:
        return sum(batch.num_rows for batch in self.batches()), 0

    def schema(self) -> Any:
        with self._open() as reader:
            return output_schema(reader.schema)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        import pyarrow as pa

        try:
            file = pa.memory_map(os.fsencode(self.file))
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            with pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file) as reader:
                yield reader
        except (pa.ArrowInvalid, OSError) as error:  # in the rows too
            raise UserError(f"{self.name} is not a readable Arrow file: {error}") from None


def _without_first(batches: Iterable[Any], rows: int) -> Iterator[Any]:
    """Leave out the first rows of a sequence of batches."""
    for batch in batches:
        if rows < batch.num_rows:
            yield batch.slice(rows)
        rows = max(0, rows - batch.num_rows)


def batch_rows(batches: Iterable[Any], start: int) -> Iterator[Row]:
    """Yield the rows of record batches or tables.

    Args:
        batches: the batches, in order.
        start: number of the first row, counted from 0.
    """
    for number, record in enumerate(chain.from_iterable(map(_records, batches)), start + 1):
        if record is None:
            yield Row(number, None, "bad_encoding", f"row {number}: not valid UTF-8")
        else:
            yield Row(number, record)


def output_schema(schema: Any) -> Any:
    """Return the schema with no other metadata than what `datasets` and pandas read types from.

    Metadata of other writers lists all columns, so it would hide the score columns.
    """
    kept = {key: value for key, value in (schema.metadata or {}).items() if key in (b"huggingface", b"pandas")}
    return schema.with_metadata(kept)


def _records(batch: Any) -> Iterator[dict[str, Any] | None]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        # Rare: convert the rows one by one to find the invalid ones.
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None

"""ParquetFile, ArrowFile: files of Arrow record batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from ...errors import UserError
from .source import FileSource, Row

BATCH_ROWS = 1024


class _BatchFile(FileSource):
    """A file of record batches, read one batch at a time."""

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """Yield the record batches in order."""

    def rows(self) -> Iterator[Row]:
        number = 0
        for batch in self.batches():
            for record in _records(batch):
                number += 1
                if record is None:
                    yield Row(number, None, "bad_encoding", f"row {number}: not valid UTF-8")
                else:
                    yield Row(number, record)


class ParquetFile(_BatchFile):
    """A .parquet file."""

    def batches(self) -> Iterator[Any]:
        with self._open() as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS)

    def count(self) -> tuple[int, int]:
        with self._open() as file:
            return int(file.metadata.num_rows), 0

    def schema(self) -> Any:
        with self._open() as file:
            return file.schema_arrow.remove_metadata()

    def _open(self) -> Any:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            return parquet.ParquetFile(self.file)
        except pa.ArrowInvalid as error:
            raise UserError(f"{self.name} is not a readable parquet file: {error}") from None


class ArrowFile(_BatchFile):
    """An .arrow file: an IPC file (Feather), or an IPC stream as in the cache of `datasets`."""

    def batches(self) -> Iterator[Any]:
        with self._open() as reader:
            has_index = hasattr(reader, "num_record_batches")
            batches = map(reader.get_batch, range(reader.num_record_batches)) if has_index else reader
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield batch.slice(start, BATCH_ROWS)

    def count(self) -> tuple[int, int]:
        return sum(batch.num_rows for batch in self.batches()), 0

    def schema(self) -> Any:
        with self._open() as reader:
            return reader.schema.remove_metadata()

    def _open(self) -> Any:
        import pyarrow as pa

        file = pa.memory_map(str(self.file))
        try:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            return pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
        except pa.ArrowInvalid as error:
            raise UserError(f"{self.name} is not a readable Arrow file: {error}") from None


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

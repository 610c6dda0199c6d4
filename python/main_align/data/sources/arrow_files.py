"""Parquet files and Hugging Face `datasets` as streams of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import UserError
from .source import FileSource, Row, Source, Survey

BATCH_ROWS = 1024
MESSAGE = 600  # characters of a library's message
ARROW_FILE = b"ARROW1"


class ArrowFile(FileSource):
    """A file of Arrow record batches, read one batch at a time."""

    def batches(self) -> Iterator[Any]:
        """The record batches in order."""
        raise NotImplementedError

    def rows(self) -> Iterator[Row]:
        number = 0
        for batch in self.batches():
            for record in _records(batch):
                number += 1
                if record is None:
                    yield Row(number, None, "bad_encoding", f"row {number}: not valid UTF-8")
                else:
                    yield Row(number, record)


class Parquet(ArrowFile):
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
        from pyarrow.parquet import ParquetFile

        try:
            return ParquetFile(self.file)
        except pa.ArrowInvalid as error:
            raise UserError(f"{self.name} is not a readable parquet file: {error}") from None


class Arrow(ArrowFile):
    """An .arrow file: an IPC file (Feather) or an IPC stream, as `datasets` keeps its cache."""

    def batches(self) -> Iterator[Any]:
        with self._open() as reader:
            whole = hasattr(reader, "num_record_batches")
            found = map(reader.get_batch, range(reader.num_record_batches)) if whole else reader
            for batch in found:
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
            return pa.ipc.open_file(file) if file.read(6) == ARROW_FILE else pa.ipc.open_stream(_rewound(file))
        except pa.ArrowInvalid as error:
            raise UserError(f"{self.name} is not a readable Arrow file: {error}") from None


def _rewound(file: Any) -> Any:
    file.seek(0)
    return file


def _records(batch: Any) -> Iterator[dict[str, Any] | None]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        # Rare: find the rows at fault one by one.
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


class HubDataset(Source):
    """A saved `datasets` folder, or a data set by hub id; memory-mapped, never loaded whole."""

    def __init__(self, name: str, split: str | None, config: str | None = None) -> None:
        self.name, self.split, self.config = name, split, config
        self.path = Path(name) if Path(name).exists() else None
        self._dataset: Any = None

    def rows(self) -> Iterator[Row]:
        for number, record in enumerate(self._load(), 1):
            yield Row(number, record)

    def survey(self) -> Survey:
        dataset = self._load()
        return Survey(dataset.num_rows, 0, int(dataset.dataset_size or 0), self.digest())

    def digest(self) -> str:
        dataset = self._load()
        # The library's own fingerprint covers the data and every transformation applied to it.
        identity = f"{dataset._fingerprint} {dataset.num_rows} {dataset.features}"
        return hashlib.sha256(identity.encode()).hexdigest()

    def schema(self) -> Any:
        return self._load().features.arrow_schema.remove_metadata()

    def _load(self) -> Any:
        if self._dataset is None:
            self._dataset = self._pick_split(_load(self.name, self.config))
        return self._dataset

    def _pick_split(self, found: Any) -> Any:
        if not isinstance(found, dict):
            if self.split:
                raise UserError(f"{self.name} has no splits; leave out --split {self.split}")
            return found
        if self.split is None and len(found) == 1:
            return next(iter(found.values()))
        if self.split not in found:
            raise UserError(f"{self.name}: choose --split, one of: {', '.join(found)}")
        return found[self.split]


def _load(name: str, config: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{name}: reading a `datasets` source needs the datasets library; pip install 'main-kernels[hf]'"
        ) from None
    folder = Path(name)
    saved = any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    if saved and config:
        raise UserError(f"{name} was made by save_to_disk and has no configurations; leave out --config {config}")
    try:
        return datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config)
    except Exception as error:  # the library raises a dozen unrelated types here
        raise UserError(
            f"{name}: not a data set that can be loaded: {_causes(error)}. Give a file, "
            "a folder made by save_to_disk, or a reachable hub id."
        ) from None


def _causes(error: BaseException) -> str:
    """What went wrong on one line, the causes included: the outermost message seldom names the file or column."""
    messages: list[str] = []
    found: BaseException | None = error
    while found is not None:
        text = " ".join(str(found).split()) or type(found).__name__
        if not any(text in earlier for earlier in messages):
            messages.append(text[:MESSAGE])
        found = found.__cause__ or found.__context__
    return "; ".join(messages[:2])

"""Parquet files and Hugging Face `datasets` as streams of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError
from .sources import FileSource, Row, Source, Survey

BATCH_ROWS = 1024


class Parquet(FileSource):
    """A .parquet file, read one record batch at a time."""

    def rows(self) -> Iterator[Row]:
        number = 0
        with self._open() as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for record in _records(batch):
                    number += 1
                    if record is None:
                        yield Row(number, None, "bad_encoding", f"row {number}: not valid UTF-8")
                    else:
                        yield Row(number, record)

    def count(self) -> int:
        with self._open() as file:
            return int(file.metadata.num_rows)

    def schema(self) -> Any:
        with self._open() as file:
            return file.schema_arrow.remove_metadata()

    def _open(self) -> Any:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        try:
            return ParquetFile(self.path)
        except pa.ArrowInvalid as error:
            raise UserError(f"{self.path} is not a readable parquet file: {error}") from None


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

    def __init__(self, name: str, split: str | None) -> None:
        self.name = name
        self.split = split
        self._dataset: Any = None

    def rows(self) -> Iterator[Row]:
        for number, record in enumerate(self._load(), 1):
            yield Row(number, record)

    def survey(self) -> Survey:
        dataset = self._load()
        # The library's own fingerprint covers the data and every transformation applied to it.
        identity = f"{dataset._fingerprint} {dataset.num_rows} {dataset.features}"
        digest = hashlib.sha256(identity.encode()).hexdigest()
        return Survey(dataset.num_rows, 0, int(dataset.dataset_size or 0), digest)

    def schema(self) -> Any:
        return self._load().features.arrow_schema.remove_metadata()

    def _load(self) -> Any:
        if self._dataset is None:
            self._dataset = self._pick_split(_load(self.name))
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


def _load(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{name}: reading a `datasets` source needs the datasets library; pip install 'main-kernels[hf]'"
        ) from None
    folder = Path(name)
    saved = any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    try:
        return datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # the library raises a dozen unrelated types here
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name}: not a data set that can be loaded: {first_line}. Give a file "
            "(.jsonl, .json, .parquet, .csv), a folder made by save_to_disk, or a reachable hub id."
        ) from None

"""HubDataset: a folder saved by `datasets`, or a data set on the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from .arrow_files import batch_rows, output_schema
from .source import Row, Source, SourceInfo

BATCH_ROWS = 64  # rows that are read together; they may have images
MAX_MESSAGE = 600  # characters kept of a library's error message


class HubDataset(Source):
    """A saved `datasets` folder, or a data set on the hub. It is memory-mapped.

    Args:
        name: the folder or the hub id.
        split: the split to read. Default: the only one.
        config: the configuration to load. Default: the data set's own default.
    """

    def __init__(self, name: str, split: str | None = None, config: str | None = None) -> None:
        super().__init__(name, Path(name) if Path(name).exists() else None)
        self.split, self.config = split, config
        self._dataset: Any = None

    def rows(self) -> Iterator[Row]:
        return self.rows_from(0)

    can_jump = True

    def rows_from(self, start: int) -> Iterator[Row]:
        dataset = self._load()
        features = _without_media(dataset.features)
        tables = dataset.select(range(start, dataset.num_rows)).with_format("arrow").iter(BATCH_ROWS)
        for row in batch_rows(tables, start):
            yield row if row.record is None else replace(row, record=features.decode_example(row.record))

    def address(self) -> dict[str, Any]:
        name = str(self.path.absolute()) if self.path else self.name
        return {"dataset": name, "split": self.split, "config": self.config}

    def inspect(self) -> SourceInfo:
        dataset = self._load()
        return SourceInfo(dataset.num_rows, 0, int(dataset.dataset_size or 0), self.digest())

    def digest(self) -> str:
        dataset = self._load()
        # The fingerprint of `datasets` covers the data and every transformation.
        identity = f"{dataset._fingerprint} {dataset.num_rows} {dataset.features}"
        return hashlib.sha256(identity.encode()).hexdigest()

    def schema(self) -> Any:
        return output_schema(self._load().features.arrow_schema)

    def _load(self) -> Any:
        if self._dataset is None:
            self._dataset = self._pick_split(_load(self.name, self.config))
        return self._dataset

    def _pick_split(self, loaded: Any) -> Any:
        if not isinstance(loaded, dict):
            if self.split:
                raise UserError(f"{self.name} has no splits; leave out --split {self.split}")
            return loaded
        if self.split is None and len(loaded) == 1:
            return next(iter(loaded.values()))
        if self.split not in loaded:
            raise UserError(f"{self.name}: choose --split, one of: {', '.join(loaded)}")
        return loaded[self.split]


def _without_media(feature: Any) -> Any:
    """Return features of `datasets` with which images and the like stay bytes and paths, as they are written again."""
    if isinstance(feature, dict):
        return type(feature)({name: _without_media(inner) for name, inner in feature.items()})
    if isinstance(feature, list):
        return [_without_media(inner) for inner in feature]
    feature = copy(feature)
    if hasattr(feature, "feature"):
        feature.feature = _without_media(feature.feature)
    elif hasattr(feature, "decode") and type(feature).__name__ != "Json":
        feature.decode = False
    return feature


def is_saved_dataset(folder: Path) -> bool:
    """Return True if `datasets` wrote the folder with save_to_disk."""
    return any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _load(name: str, config: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{name}: reading a `datasets` source needs the datasets library ({error}); pip install 'main-kernels[hf]'"
        ) from None
    is_saved = is_saved_dataset(Path(name))
    if is_saved and config:
        raise UserError(f"{name} was made by save_to_disk and has no configurations; leave out --config {config}")
    try:
        return datasets.load_from_disk(name) if is_saved else datasets.load_dataset(name, config)
    except Exception as error:  # `datasets` raises many unrelated types
        raise UserError(
            f"{name}: the data set cannot be loaded: {_causes(error)}. Give a file, "
            "a folder made by save_to_disk, or a reachable hub id."
        ) from None


def _causes(error: BaseException) -> str:
    """Return an error and its causes on one line. The outermost message seldom names the file or column."""
    messages: list[str] = []
    current: BaseException | None = error
    while current is not None:
        text = " ".join(str(current).split()) or type(current).__name__
        if not any(text in earlier for earlier in messages):
            messages.append(text[:MAX_MESSAGE])
        current = current.__cause__ or current.__context__
    return "; ".join(messages[:2])

"""splits_of_folder, as_dataset: files that `main-align score` reads, as data sets of `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset
from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

from ...data.read import open_address, open_source
from ...data.sources.file_formats import BY_ENDING, ENDINGS, file_ending
from ...data.sources.file_set import FileSet
from ...data.sources.source import Source
from ...data.write import to_json
from ...errors import UserError
from .row_checks import QUALITY_FLAGS

FLAGS = {*QUALITY_FLAGS, "synthetic"}
BATCH = 1000  # rows whose types are inferred at once


def splits_of_folder(folder: Path) -> dict[str, Source]:
    """Divide the files of a folder into splits by their names, as `datasets` does: train.jsonl, test.jsonl.

    Args:
        folder: a folder of files in FILE_FORMATS. Without names of splits, all files are the split `train`.

    Raises:
        UserError: the folder holds no file of rows.
    """
    try:
        found = DataFilesDict.from_patterns(get_data_patterns(str(folder)), str(folder))
    except EmptyDatasetError:
        found = {}
    splits: dict[str, Source] = {}
    for split, names in found.items():
        files = [file for file in dict.fromkeys(names) if file_ending(Path(file)) in BY_ENDING]
        if files:
            splits[str(split)] = open_source(files)
    if not splits:
        raise UserError(f"{folder}: the folder holds no file of rows ({ENDINGS})")
    return splits


def as_dataset(source: Source, *, streaming: bool) -> Dataset | IterableDataset:
    """Return the rows of files as a data set. Without `streaming` it is memory-mapped from the cache of `datasets`.

    A column whose types differ between rows, which Arrow cannot store, is text: its other values are written as JSON.

    Args:
        source: a file or a set of files.
        streaming: read the rows when they are needed; each file is a shard.

    Raises:
        UserError: a row cannot be read. A stream raises when it reaches the row.
    """
    members = list(source.members.values()) if isinstance(source, FileSet) else [source]
    shards: dict[str, Any] = {"addresses": [member.address() for member in members]}
    if streaming:
        return IterableDataset.from_generator(_records, gen_kwargs=shards)
    schema, mixed = _inferred(members)
    return Dataset.from_generator(
        _records,
        features=Features.from_arrow_schema(schema),
        # the digest makes changed files miss the cache
        gen_kwargs={**shards, "mixed": mixed, "digest": source.digest()},
    )


def _records(
    addresses: Sequence[Mapping[str, Any]], mixed: Sequence[str] = (), digest: str = ""
) -> Iterator[dict[str, Any]]:
    for address in addresses:
        for row in _good_rows(open_address(address)):
            yield {name: _as_text(value) if name in mixed else value for name, value in row.items()}


def _good_rows(source: Source) -> Iterator[dict[str, Any]]:
    for row in source.rows():
        if row.record is None or row.status != "ok":
            raise UserError(f"{source.name}: {row.reason}. Correct or remove this row.")
        if source.is_untyped:
            yield {name: _flag(value) if name in FLAGS else value for name, value in row.record.items()}
        else:
            yield row.record


def _flag(value: str) -> bool | str | None:
    """Return true, false or nothing for its text: a table holds text alone."""
    return {"true": True, "false": False, "": None}.get(value.strip().casefold(), value)


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else to_json(value)


def _inferred(members: Sequence[Source]) -> tuple[pa.Schema, tuple[str, ...]]:
    """Return the types of all rows, and the names of the columns whose types differ between rows."""
    types: dict[str, pa.DataType] = {}
    mixed: dict[str, None] = {}
    for member in members:
        rows = _good_rows(member)
        while batch := list(islice(rows, BATCH)):
            for name in dict.fromkeys(name for record in batch for name in record):
                if name not in mixed:
                    try:
                        column = pa.array([record.get(name) for record in batch])
                        types[name] = _common_type(types.get(name, pa.null()), column.type)
                    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
                        types[name], mixed[name] = pa.string(), None
                    except UnicodeEncodeError:
                        raise UserError(
                            f"{member.name}: a text of the field {name!r} is not valid Unicode (half of a surrogate "
                            "pair). Correct or remove this row; main-align score names it."
                        ) from None
    return pa.schema(list(types.items())), tuple(mixed)


def _common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    schemas = [pa.schema([("", kind)]) for kind in (a, b)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("").type

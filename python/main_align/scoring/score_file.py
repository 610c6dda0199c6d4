"""write_scores, score_rows_of, read_columns, column_titles: score files written, and read as rows or as arrays."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.fields import Fields
from ..data.read import open_source
from ..data.sources.arrow_files import BatchFile
from ..data.write import write_rows
from ..errors import UserError
from .columns import COLUMNS, NUMERIC
from .manifest import manifest_path, read_manifest

PREFIX = "main_"
"""before the name of a score column that the data set has a field of"""
BATCH = 65536
"""rows that are read together as columns"""


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Numeric columns of a score file.

    Args:
        columns: float64[N] by name, NaN for null.
        counts: rows of each status.
        reasons: first reason of each status.
        rows: N.
    """

    columns: dict[str, NDArray[np.float64]]
    counts: Counter[str]
    reasons: dict[str, str]
    rows: int


def score_rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a score file, or of an output folder, in order: numbers as numbers, null as None, also in .csv.

    Raises:
        UserError: the file is damaged or no score file, or the folder is not complete.
    """
    for part in score_parts(path) if path.is_dir() else [path]:
        yield from _rows_of_file(part)


def score_parts(folder: Path) -> list[Path]:
    """Return the parts of an output folder, in order.

    Raises:
        UserError: the folder was not written by main-align score, its job is not complete, or parts were lost or added.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the output folder of main-align score")
    if not (folder / "job.json").is_file():
        raise UserError(f"{folder} is a folder that main-align score did not write; give a score file or such a folder")
    if not manifest_path(folder).is_file():
        raise UserError(f"{folder} is not complete; run its main-align score again, with every shard")
    parts = sorted((folder / "parts").glob("part-*.parquet"))
    rows, manifest = sum(map(_rows_in_part, parts)), read_manifest(folder)
    assert manifest is not None
    if rows != manifest["rows"] or parts != [folder / "parts" / part_name(index) for index in range(len(parts))]:
        raise UserError(
            f"{folder / 'parts'} holds {rows} rows in {len(parts)} files, and {manifest_path(folder)} names "
            f"{manifest['rows']}: parts were lost or added; score again with --restart"
        )
    return parts


def part_name(index: int) -> str:
    """Return the name of the scores of unit `index` in the parts of an output folder."""
    return f"part-{index:06}.parquet"


def _rows_in_part(path: Path) -> int:
    from pyarrow import ArrowInvalid, parquet

    try:
        rows: int = parquet.read_metadata(path).num_rows
    except ArrowInvalid as error:
        raise UserError(f"{path} is damaged ({error}); score again with --restart") from None
    return rows


def _rows_of_file(path: Path) -> Iterator[dict[str, Any]]:
    source = open_source(path)
    for number, row in enumerate(source.rows(), 1):
        if row.status != "ok" or row.record is None:
            raise UserError(f"{path}: {row.reason}; write it again with main-align score")
        missing = {"id", "status"} - row.record.keys()
        if missing:
            raise UserError(
                f"{path} is not a score file: row {number} lacks {' and '.join(sorted(missing))}; "
                "give the output of main-align score"
            )
        yield _typed(row.record, path) if source.is_untyped else row.record


def _typed(record: dict[str, Any], path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in record.items():
        if name in NUMERIC:
            row[name] = None if value == "" else _parse(value, name, path)
        else:
            row[name] = value if value != "" or name == "id" else None
    return row


def _parse(text: str, name: str, path: Path) -> float:
    try:
        return int(text) if COLUMNS[name].kind == "count" else float(text)
    except ValueError:
        raise UserError(f"{path}: column {name!r} holds {text!r}, not a number") from None


def read_columns(path: Path, *required: str) -> ScoreTable:
    """Read the numeric columns as arrays, 8 bytes per value; texts are not kept.

    Args:
        path: score file or output folder.
        required: columns that must exist; they are read even if they are not in COLUMNS.

    Raises:
        UserError: no such column, no rows, or a value that is no number.
    """
    tables = []
    for file in score_parts(path) if path.is_dir() else [path]:
        source = open_source(file)
        if isinstance(source, BatchFile) and _is_typed(source.schema(), required):
            table = _read_batches(source, required)
        else:
            table = _read_rows(file, required)
        if table.rows:
            tables.append(table)
    if not tables:
        raise UserError(f"{path} holds no rows; write it again with main-align score")
    counts: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for table in tables:
        counts.update(table.counts)
        for status, reason in table.reasons.items():
            reasons.setdefault(status, reason)
    columns = {name: np.concatenate([table.columns.pop(name) for table in tables]) for name in list(tables[0].columns)}
    return ScoreTable(columns, counts, reasons, counts.total())


def _read_rows(file: Path, required: Sequence[str]) -> ScoreTable:
    counts: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    values: dict[str, array[float]] = {}
    for number, row in enumerate(_rows_of_file(file), 1):
        counts[row["status"]] += 1
        if row.get("reason"):
            reasons.setdefault(row["status"], row["reason"])
        if number == 1:
            values = {name: array("d") for name in _numeric(row, required, file)}
        for name, column in values.items():
            column.append(_number(row.get(name), name, number, file))
    arrays = {name: np.frombuffer(column, dtype=np.float64) for name, column in values.items()}
    return ScoreTable(arrays, counts, reasons, counts.total())


def _read_batches(source: BatchFile, required: Sequence[str]) -> ScoreTable:
    """Read the columns without making rows of them."""
    import pyarrow as pa
    from pyarrow import compute

    counts: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    names = _numeric(source.schema().names, required, source.file)
    values: dict[str, list[NDArray[np.float64]]] = {name: [np.zeros(0)] for name in names}
    for batch in source.batches(columns=[*names, "status", "reason"], size=BATCH):
        counts.update({one["values"]: one["counts"] for one in batch["status"].value_counts().to_pylist()})
        given = compute.not_equal(batch["reason"], "")
        whys = pa.table([batch["status"], batch["reason"]], ["status", "reason"]).filter(given)
        firsts = whys.group_by("status", use_threads=False).aggregate([("reason", "first")]) if len(whys) else whys
        for status, reason in zip(*(column.to_pylist() for column in firsts), strict=True):
            reasons.setdefault(status, reason)
        for name, column in values.items():
            column.append(batch[name].cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    arrays = {name: np.concatenate(column) for name, column in values.items()}
    return ScoreTable(arrays, counts, reasons, counts.total())


def _is_typed(schema: Any, required: Sequence[str]) -> bool:
    """Return True if a file has the columns and types that write_scores writes, as far as they are read."""
    from pyarrow import types

    def has(name: str, *kinds: Callable[[Any], bool]) -> bool:
        return name in schema.names and any(is_kind(schema.field(name).type) for is_kind in kinds)

    wanted = [name for name in dict.fromkeys((*NUMERIC, *required)) if name in schema.names]
    return (
        "id" in schema.names
        and all(has(name, types.is_string) for name in ("status", "reason"))
        and all(has(name, types.is_integer, types.is_float64) for name in wanted)
    )


def _numeric(names: Iterable[str], required: Sequence[str], file: Path) -> list[str]:
    """Return the columns to read among these names."""
    names = list(names)
    if missing := [name for name in required if name not in names]:
        raise UserError(f"{file} has no column {missing[0]!r}; it has {', '.join(names)}")
    return [name for name in dict.fromkeys((*NUMERIC, *required)) if name in names]


def _number(value: Any, name: str, number: int, path: Path) -> float:
    if value is None:
        return np.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{path}: row {number}, column {name!r} holds {value!r}, not a number") from None


def write_scores(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write score rows to `path` one by one: texts, int64 token counts and float64 scores, all nullable."""
    import pyarrow as pa

    write_rows(path, rows, pa.schema(list(score_types(COLUMNS).items())))


def score_types(names: Iterable[str]) -> dict[str, Any]:
    """Return the pyarrow type of each of these score columns."""
    import pyarrow as pa

    types = {"score": pa.float64(), "count": pa.int64(), "text": pa.string()}
    return {name: types[COLUMNS[name].kind] for name in names}


def column_titles(names: Iterable[str], fields: Fields) -> dict[str, str]:
    """Return the names that score columns have beside the fields of a data set, so that no field is overwritten.

    Args:
        names: the fields of the data set. PREFIX is put before a column until it has the name of none of them.
        fields: the field names with which it was scored. The column `id` is left out if the data set has its own.
    """
    taken = set(names)
    titles = {name: name for name in COLUMNS if name != "id" or (fields.id or "id") not in taken}
    for name in titles:
        while titles[name] in taken:
            titles[name] = PREFIX + titles[name]
    return titles

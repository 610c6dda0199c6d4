"""Join, write_kept, write_kept_scores: a data set joined with its scores, row by row.

Row k of the scores belongs to row k of the input. Ids need not be unique; if the input has ids of its own, they are
compared before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import compress, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.fields import Fields
from ..data.labels import aligned_flag
from ..data.pairs import Pair
from ..data.sources.source import Source
from ..data.write import (
    format_errors,
    write_rows,
)
from ..errors import UserError
from ..scoring.columns import COLUMNS
from ..scoring.score_file import (
    column_titles,
    score_rows_of,
    score_types,
)

BATCH = 4096

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Join:
    """A data set joined with its scores. Iterating yields (record or None, score row); it can be repeated.

    Args:
        source: the data set.
        fields: the field names with which it was scored.
        scores: the score file.
    """

    source: Source
    fields: Fields
    scores: Path

    def __iter__(self) -> Iterator[tuple[Row | None, Row]]:
        return ((record, score) for _, record, score in self.with_pairs())

    def with_pairs(self) -> Iterator[tuple[Pair, Row | None, Row]]:
        """Yield the pair, the record and the score row of every row.

        Raises:
            UserError: the input and the score file differ in their number of rows or in an id.
        """
        rows = zip_longest(self.source.pairs_with_records(self.fields), score_rows_of(self.scores))
        for number, (pair_and_record, score) in enumerate(rows, 1):
            if pair_and_record is None or score is None:
                shorter = "input" if pair_and_record is None else "score file"
                raise UserError(
                    f"{self.scores} does not belong to this input: the {shorter} has no row {number}; "
                    "name the scored data set with --input"
                )
            pair, record = pair_and_record
            if pair.own_id and pair.id != str(score["id"]):
                raise UserError(
                    f"{self.scores} does not belong to this input: row {number} has the id {score['id']!r} "
                    f"in the scores and {pair.id!r} in the input; name the scored data set with --input"
                )
            yield pair, record, score


def write_kept(join: Join, out: Path, kept: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Write the kept rows with their own fields, followed by the score columns.

    Args:
        join: the data set and its scores.
        out: the file to write.
        kept: bool[N], True for the rows to write.

    Returns:
        float64[N], the input's boolean field `aligned`, NaN for a row without it. None if no row has it.
    """
    names: dict[str, None] = {}
    aligned = np.full(len(kept), np.nan)
    for number, (record, _) in enumerate(join):
        names.update(dict.fromkeys(record or ()))
        aligned[number] = aligned_flag(record)
    titles = column_titles(names, join.fields)

    def rows() -> Iterator[Row]:
        for record, score in compress(join, kept):
            yield (record or {}) | {title: score.get(name) for name, title in titles.items()}

    types = {titles[name]: kind for name, kind in score_types(titles).items()}
    write_rows(out, rows(), _schema(out, rows, names, types, join.source))
    return None if np.isnan(aligned).all() else aligned


def write_kept_scores(scores: Path, out: Path, kept: NDArray[np.bool_]) -> None:
    """Write the kept rows of a score file with all their columns."""
    names: dict[str, None] = {}
    for row in score_rows_of(scores):
        names.update(dict.fromkeys(row))

    def rows() -> Iterator[Row]:
        return compress(score_rows_of(scores), kept)

    types = score_types(name for name in names if name in COLUMNS)
    write_rows(out, rows(), _schema(out, rows, names, types, None))


def _schema(
    out: Path,
    rows: Callable[[], Iterator[Row]],
    names: Iterable[str],
    types: dict[str, Any],
    source: Source | None,
) -> Any:
    """Return the output's schema: types of score columns are fixed, others come from the source or are inferred."""
    import pyarrow as pa

    ending = out.suffix.lower()
    if ending == ".jsonl":
        return pa.schema([])  # each row has its own fields
    own = source.schema() if source and ending != ".csv" else None
    if own is None and ending != ".csv":
        own = _inferred(({n: v for n, v in row.items() if n not in types} for row in rows()), out)
    with format_errors(str(out), [dict.fromkeys(names)], lambda name, _: pa.field(name, pa.null()), first=None):
        if own is None:
            return pa.schema([(name, pa.null()) for name in dict.fromkeys([*names, *types])])
        return pa.schema([*own, *types.items()] if source else _in_order(own, types, names), metadata=own.metadata)


def _inferred(rows: Iterable[Row], out: Path) -> Any:
    """Return a schema that every row fits.

    Raises:
        UserError: a field has values of different types.
    """
    import pyarrow as pa

    rows, schema, first = iter(rows), pa.schema([]), 1

    def merged(schema: Any, part: list[Row]) -> Any:
        return pa.unify_schemas([schema, pa.schema(pa.array(part).type)], promote_options="permissive")

    def merge_field(name: str, value: Any) -> None:
        nonlocal schema
        schema = merged(schema, [{name: value}])

    while batch := list(islice(rows, BATCH)):
        with format_errors(str(out), batch, merge_field, first=first):
            schema = merged(schema, batch)
        first += len(batch)
    return schema


def _in_order(own: Any, types: dict[str, Any], names: Iterable[str]) -> list[Any]:
    all_types = {field.name: field.type for field in own} | types
    return [(name, all_types[name]) for name in names if name in all_types]

"""Walks a data set and its scores side by side and writes the rows that were kept.

Row k of the scores belongs to row k of the input. Ids are labels that may repeat; where the input has
one of its own, it is compared as a check, before anything is written.
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
from ..data.sources.source import Source
from ..data.write import (
    write_rows,
)
from ..errors import UserError
from ..scoring.columns import COLUMNS
from ..scoring.score_file import (
    score_rows_of,
    score_types,
)

PREFIX = "main_"
BATCH = 4096

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Join:
    """An input and its scores; iterate for (record or None, score row), as often as needed."""

    source: Source
    fields: Fields
    scores: Path

    def __iter__(self) -> Iterator[tuple[Row | None, Row]]:
        walk = zip_longest(self.source.pairs_with_records(self.fields), score_rows_of(self.scores))
        for number, (found, score) in enumerate(walk, 1):
            if found is None or score is None:
                longer, shorter = ("scores", "input") if found is None else ("input", "scores")
                raise UserError(
                    f"{self.scores} is not of this input: the {longer} go on at row {number} "
                    f"where the {shorter} end; name the scored data set with --input"
                )
            pair, record = found
            if pair.own_id and pair.id != str(score["id"]):
                raise UserError(
                    f"{self.scores} is not of this input: row {number} has the id {score['id']!r} "
                    f"in the scores and {pair.id!r} in the input; name the scored data with --input"
                )
            yield record, score


def write_kept(join: Join, out: Path, kept: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Write the kept rows (kept: bool[N]) in their own fields, the score columns after them.

    Returns the input's boolean field `aligned` as float64[N], NaN where absent; None without any.
    """
    names: dict[str, None] = {}
    aligned = np.full(len(kept), np.nan)
    for number, (record, _) in enumerate(join):
        names.update(dict.fromkeys(record or ()))
        aligned[number] = aligned_flag(record)
    titles = _titles(names, join.fields)

    def rows() -> Iterator[Row]:
        for record, score in compress(join, kept):
            yield (record or {}) | {title: score.get(name) for name, title in titles.items()}

    types = {titles[name]: kind for name, kind in score_types(titles).items()}
    write_rows(out, rows(), _schema(out, rows, names, types, join.source))
    return None if np.isnan(aligned).all() else aligned


def _titles(names: Iterable[str], fields: Fields) -> dict[str, str]:
    """Score column -> its name in the output: prefixed where the input has a field of that name."""
    own_id = fields.id or "id"
    taken = set(names)
    columns = [name for name in COLUMNS if name != "id" or own_id not in taken]
    return {name: PREFIX + name if name in taken else name for name in columns}


def write_kept_scores(scores: Path, out: Path, kept: NDArray[np.bool_]) -> None:
    """Write the kept rows of a score file with all the columns they have."""
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
    """The output's schema: the score columns as typed, the others as in the source or as found."""
    import pyarrow as pa

    if out.suffix.lower() != ".parquet":
        return pa.schema([(name, pa.null()) for name in dict.fromkeys([*names, *types])])
    own = source.schema() if source else None
    if own is None:
        own = _inferred(({n: v for n, v in row.items() if n not in types} for row in rows()), out)
    return pa.schema([*own, *types.items()] if source else _in_order(own, types, names))


def _inferred(rows: Iterable[Row], out: Path) -> Any:
    import pyarrow as pa

    rows, schemas = iter(rows), [pa.schema([])]
    try:
        while batch := list(islice(rows, BATCH)):
            schemas.append(pa.schema(pa.array(batch).type))
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise UserError(
            f"{out}: a field holds values of different types, or too large ones ({error}), which .parquet cannot; "
            "write .jsonl instead"
        ) from None


def _in_order(own: Any, types: dict[str, Any], names: Iterable[str]) -> list[Any]:
    found = {field.name: field.type for field in own} | types
    return [(name, found[name]) for name in names if name in found]

"""ScoreFiles, open_scores: one score file, or a folder of them, as one table joined with the scored data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.pairs import Pair
from ..data.sources.source import Row as SourceRow
from ..data.sources.source import Source
from ..data.write import WRITERS
from ..errors import UserError
from ..filtering.filter import find_input
from ..filtering.join import Join
from ..scoring.manifest import read_manifest
from ..scoring.resume import JOB
from ..scoring.score_file import ScoreTable, read_columns, score_rows_of

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScoreFiles:
    """Score files read as one table.

    Args:
        path: the file or folder.
        files: the score files, in order.
        lengths: the number of rows of each file.
        table: the numeric columns of all rows, and the counts of their statuses.
        manifest: the manifest of the first file, or None if it has none.
        joins: each file joined with its data set; empty if the data was not opened.
    """

    path: Path
    files: list[Path]
    lengths: list[int]
    table: ScoreTable
    manifest: dict[str, Any] | None
    joins: list[Join]

    def joined(self) -> Iterator[tuple[Pair, Row | None]]:
        """Yield the pair and the record of every row of the data, compared with the ids of the scores."""
        for join in self.joins:
            for pair, record, _ in join.with_pairs():
                yield pair, record

    def pick(self, rows: Sequence[int]) -> Iterator[tuple[Pair | None, Row]]:
        """Yield the pair and the score row of some rows, in ascending order. The pair is None without the data."""
        following = iter(rows)
        wanted = next(following, None)
        for number, (join, row, score) in enumerate(self._rows()):
            if wanted is None:
                break
            if number == wanted:
                yield (join.source.pair_of(row, join.fields) if join and row else None), score
                wanted = next(following, None)

    def _rows(self) -> Iterator[tuple[Join | None, SourceRow | None, Row]]:
        for join in self.joins:
            for row, score in zip(join.source.rows(), score_rows_of(join.scores), strict=True):
                yield join, row, score
        if not self.joins:
            for file in self.files:
                yield from ((None, None, score) for score in score_rows_of(file))

    def label(self, row: int) -> str:
        """Return the place of a row, counted from 1 in its file; the file is named in a folder."""
        for file, length in zip(self.files, self.lengths, strict=True):
            if row < length:
                return f"{row + 1}" if len(self.files) == 1 else f"{file.name} {row + 1}"
            row -= length
        raise IndexError(row)


def open_scores(path: Path, source: str | Path | Source | None, *, needs_input: bool) -> ScoreFiles:
    """Read the numeric columns of a score file, or of all score files of a folder, and open the scored data.

    Args:
        path: the score file or the folder.
        source: the scored data set of one file. Default: the one that the manifest of each file names.
        needs_input: the scored data must be found.

    Raises:
        UserError: there is no score file, a file is damaged, or the data is needed and not found.
    """
    files = _files(path)
    if source is not None and len(files) > 1:
        raise UserError(f"--input names the data of one score file; {path} holds {len(files)}")
    tables = [read_columns(file) for file in files]
    joins = []
    try:
        for file in files:
            opened, fields = find_input(file, source, otherwise="leave out the texts with --no-text")
            joins.append(Join(opened, fields, file))
    except UserError:
        if needs_input:
            raise
        joins = []
    lengths = [table.rows for table in tables]
    return ScoreFiles(path, files, lengths, _joined(tables), read_manifest(files[0]), joins)


def _files(path: Path) -> list[Path]:
    if not path.is_dir() or (path / JOB).is_file():
        return [path]  # an output folder of main-align score is read as one file
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in WRITERS and file.is_file())
    if not files:
        raise UserError(f"{path} holds no score file ({', '.join(WRITERS)}); give the output of main-align score")
    return files


def _joined(tables: list[ScoreTable]) -> ScoreTable:
    if len(tables) == 1:
        return tables[0]
    names = dict.fromkeys(name for table in tables for name in table.columns)
    columns = {
        name: np.concatenate([table.columns.get(name, np.full(table.rows, np.nan)) for table in tables])
        for name in names
    }
    counts: Counter[str] = sum((table.counts for table in tables), Counter())
    reasons = {status: reason for table in reversed(tables) for status, reason in table.reasons.items()}
    return ScoreTable(columns, counts, reasons, counts.total())

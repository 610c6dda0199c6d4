"""Source, FileSource, Row, SourceInfo: an input as a stream of rows.

A bad row is a Row with a status. A bad file raises UserError.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..fields import NO_FIELDS, Fields, Notes
from ..formats.conversion import pair_from_record
from ..formats.record_view import RecordView
from ..pairs import Pair, check_text

CHUNK = 1 << 20  # bytes
ROWS_TO_CHECK = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One row as stored. A row with a status other than ok may still have a readable record.

    Args:
        line: position counted from 1, in the unit of its source.
        record: its fields, None if it could not be parsed.
        status: a key of STATUSES. Default: "ok".
        reason: one sentence on the status. Default: empty.
        file: the file of a FileSet that the row is from. Default: empty, not from a FileSet.
    """

    line: int
    record: dict[str, Any] | None
    status: str = "ok"
    reason: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """The size and identity of an input.

    Args:
        rows: number of rows, bad ones included.
        blank_lines: number of blank lines, which are not rows.
        size: bytes.
        digest: sha256 that identifies the content.
    """

    rows: int
    blank_lines: int
    size: int
    digest: str


class Source(ABC):
    """An input whose rows can be iterated any number of times.

    Args:
        name: the input as the user names it.
        path: its place on this machine, or None if it has none.
    """

    unit = "row"  # of Row.line
    is_untyped = False  # True if every value is text
    can_jump = False  # True if rows_from does not read the rows before its start
    listings: tuple[str, ...] = ()  # the folders and patterns that its files come from

    def __init__(self, name: str, path: Path | None) -> None:
        self.name, self.path = name, path
        self._notes: dict[Fields, Notes] = {}

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yield every row in order, bad ones included. Blank lines are skipped."""

    def rows_from(self, start: int) -> Iterator[Row]:
        """Yield the rows from number `start` on, counted from 0."""
        return islice(self.rows(), start, None)

    def paths(self) -> str | list[str] | None:
        """Return the absolute path of the source, those of all its files, or None if it has none."""
        return str(self.path.absolute()) if self.path else None

    @abstractmethod
    def address(self) -> dict[str, Any]:
        """Return what `read.open_address` opens this source with in another process, as JSON."""

    @abstractmethod
    def inspect(self) -> SourceInfo:
        """Count the rows and compute the digest."""

    @abstractmethod
    def digest(self) -> str:
        """Compute the digest without counting the rows."""

    def schema(self) -> Any:
        """Return the pyarrow schema of the rows, or None if the format has no schema."""
        return None

    def pairs(self, fields: Fields = NO_FIELDS, notes: Notes | None = None) -> Iterator[Pair]:
        """Yield the pair of every row. `notes` collects observations."""
        return (pair for pair, _ in self.pairs_with_records(fields, notes))

    def pairs_with_records(
        self, fields: Fields = NO_FIELDS, notes: Notes | None = None
    ) -> Iterator[tuple[Pair, dict[str, Any] | None]]:
        """Yield the pair and the record of every row. The record is None if the row could not be parsed."""
        fields.check()
        for row in self.rows():
            pair = self.pair_of(row, fields, notes)
            if notes is not None and pair.own_id:
                notes.add_id(pair.id)
            yield pair, row.record

    def pair_of(self, row: Row, fields: Fields = NO_FIELDS, notes: Notes | None = None) -> Pair:
        """Return the pair of one row. `notes` collects observations."""
        if row.record is None:
            return Pair(id=str(row.line), line=row.line, status=row.status, reason=row.reason, unit=self.unit)
        if row.status == "ok":
            return pair_from_record(row.record, row.line, fields, unit=self.unit, notes=notes)
        pair = pair_from_record(row.record, row.line, fields, unit=self.unit)
        return replace(pair, instruction="", response="", context=(), status=row.status, reason=row.reason)

    def check(self, fields: Fields = NO_FIELDS) -> Notes:
        """Check the first rows, once for the same fields, and return the observations.

        Raises:
            UserError: none of these rows can be scored, or a field named by the user is in none of them.
        """
        if fields not in self._notes:
            self._notes[fields] = self._check(fields)
        return self._notes[fields]

    def _check(self, fields: Fields) -> Notes:
        notes, reasons, names = Notes(), dict[str, str](), dict[str, None]()
        options = {"--id-field": fields.id, "--input-field": fields.input, "--system-field": fields.system}
        missing = {option: name for option, name in options.items() if name}
        rows = usable = 0
        for pair, record in islice(self.pairs_with_records(fields, notes), ROWS_TO_CHECK):
            rows += 1
            names.update(dict.fromkeys(map(str, record or ())))
            missing = {option: name for option, name in missing.items() if not RecordView(record or {}).has(name)}
            checked = check_text(pair)
            if checked.status == "ok":
                usable += 1
            else:
                reasons.setdefault(checked.status, checked.reason)
        if not rows:
            raise UserError(f"{self.name} has no rows; give a file with at least one pair")
        if not usable:
            raise UserError(f"{self.name}: none of the first {rows} rows can be scored. {format_reasons(reasons)}")
        if missing:
            absent = ", ".join(f"{option} {name}" for option, name in missing.items())
            raise UserError(
                f"{self.name}: no row has the field of {absent}; its fields are {', '.join(map(repr, names))}"
            )
        return notes


def format_reasons(reasons: Mapping[str, str]) -> str:
    """Return the first reason of each status as one line of text."""
    return "; ".join(f"{status}: {reason}" for status, reason in reasons.items())


class FileSource(Source):
    """A file.

    Args:
        file: the file to read.
        name: replaces the path as the name; the file then is a temporary copy.
    """

    def __init__(self, file: Path, name: str | None = None) -> None:
        super().__init__(name or str(file), None if name else file)
        self.file = file
        self.temporary: Any = None  # a temporary file that must exist as long as the source

    def address(self) -> dict[str, Any]:
        return {"file": str(self.file.absolute()), "name": None if self.path else self.name}

    def inspect(self) -> SourceInfo:
        rows, blank = self.count()
        return SourceInfo(rows, blank, self.file.stat().st_size, self.digest())

    def digest(self) -> str:
        digest = hashlib.sha256()
        with self.file.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def count(self) -> tuple[int, int]:
        """Return the numbers of rows and of blank lines."""
        return sum(1 for _ in self.rows()), 0

"""Text files as streams of rows: .jsonl by binary line, .json arrays by element, .csv by record.

Memory does not grow with the file. A bad row is a Row with a status; a bad file is a UserError.
"""

from __future__ import annotations

import csv
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .errors import UserError

CHUNK = 1 << 20
MAX_CSV_FIELD = 1 << 26
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """One row as found. A row with a status other than ok may still carry a readable record."""

    line: int
    record: dict[str, Any] | None
    status: str = "ok"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a walk over the whole input tells. `size` in bytes; `digest` is the sha256."""

    rows: int
    blank_lines: int
    size: int
    digest: str


class Source(ABC):
    """An input whose rows can be walked any number of times. `unit` is what Row.line counts."""

    unit = "row"

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every row in order, bad ones included; a blank line is not a row."""

    @abstractmethod
    def survey(self) -> Survey:
        """Count the rows and identify the input."""

    def schema(self) -> Any:
        """The pyarrow schema of the rows where the format has one, else None."""
        return None


class FileSource(Source):
    def __init__(self, path: Path) -> None:
        self.path = path

    def survey(self) -> Survey:
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return Survey(self.count(), 0, self.path.stat().st_size, digest.hexdigest())

    def count(self) -> int:
        return sum(1 for _ in self.rows())


class JsonLines(FileSource):
    unit = "line"

    def rows(self) -> Iterator[Row]:
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    raw = raw.removeprefix(BOM)
                if raw.strip():
                    yield _row_of_line(raw, number)

    def survey(self) -> Survey:
        digest, size, rows, blank = hashlib.sha256(), 0, 0, 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                digest.update(raw)
                size += len(raw)
                text = raw.removeprefix(BOM) if number == 1 else raw
                rows, blank = (rows + 1, blank) if text.strip() else (rows, blank + 1)
        return Survey(rows, blank, size, digest.hexdigest())


def _row_of_line(raw: bytes, number: int) -> Row:
    status, reason = "ok", ""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        status = "bad_encoding"
        reason = f"line {number}: byte {error.start + 1} is not UTF-8"
        # Decoded leniently all the same, so that the row keeps its own id.
        text = raw.decode("utf-8", "surrogateescape")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, ValueError) else "nested too deeply"
        if status == "ok":
            status, reason = "bad_json", f"line {number}: not valid JSON: {problem}"
        return Row(number, None, status, reason)
    if not isinstance(record, dict):
        return _not_an_object(record, number, "line")
    return Row(number, record, status, reason)


def _not_an_object(value: object, number: int, unit: str) -> Row:
    found = type(value).__name__
    return Row(number, None, "bad_json", f"{unit} {number}: a JSON {found}, not an object")


class JsonArray(FileSource):
    """A .json file holding one array of objects, parsed one element at a time.

    An array that breaks off or is malformed cannot be followed past that point, so it is a bad file
    and raises; `survey` finds out before any scoring starts.
    """

    def rows(self) -> Iterator[Row]:
        # surrogateescape: bad bytes stay inside their own row, where forms.py finds them.
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, value in enumerate(self._elements(file), 1):
                if isinstance(value, dict):
                    yield Row(number, value)
                else:
                    yield _not_an_object(value, number, "row")

    def _elements(self, file: IO[str]) -> Iterator[Any]:
        decoder, buffer, position, seen = json.JSONDecoder(), "", 0, 0
        expect_value = False  # after "[" or ",": a value must follow, or "]" right after "["
        started = False
        grow = CHUNK
        while True:
            while position < len(buffer) and buffer[position] in " \t\r\n":
                position += 1
            head = buffer[position : position + 1]
            if head and not started:
                started, expect_value, position = True, True, position + 1
                continue
            if head == "]" and (not expect_value or seen == 0):
                self._check_end(buffer[position + 1 :] + file.read(CHUNK), seen)
                return
            if head == "," and not expect_value:
                expect_value, position = True, position + 1
                continue
            if head and not expect_value:
                raise self._broken(seen, f"expected ',' or ']', found {head!r}")
            problem = "the file ends inside the array"
            if head:
                try:
                    value, end = decoder.raw_decode(buffer, position)
                except (ValueError, RecursionError) as error:
                    problem = str(error) or "nested too deeply"
                else:
                    # A number at the very end of the buffer may go on in the next chunk.
                    if end < len(buffer):
                        yield value
                        position, seen, expect_value, grow = end, seen + 1, False, CHUNK
                        continue
            more = file.read(grow)
            if not more:
                raise self._broken(seen, problem)
            buffer, position = buffer[position:] + more, 0
            grow *= 2  # one huge element is then parsed a logarithmic number of times

    def _check_end(self, rest: str, seen: int) -> None:
        if rest.strip():
            raise self._broken(seen, f"text after the closing ']': {rest.strip()[:20]!r}")

    def _broken(self, seen: int, problem: str) -> UserError:
        return UserError(
            f"{self.path}: the array is broken after row {seen}: {problem}. "
            "Mend the file, or convert it to .jsonl, where one bad row does not hide the others."
        )


class Csv(FileSource):
    """A .csv file with a header; `line` is the line on which the record starts."""

    unit = "line"

    def rows(self) -> Iterator[Row]:
        # The csv module's limit is process-wide and too low for long responses.
        csv.field_size_limit(MAX_CSV_FIELD)
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = self._header(reader)
            while True:
                line = reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Row(line, None, "bad_csv", f"line {line}: {error}")
                    continue
                if cells:
                    yield self._row(header, cells, line)

    def _header(self, reader: Any) -> list[str]:
        try:
            header: list[str] = next(reader)
        except (csv.Error, StopIteration) as error:
            raise UserError(f"{self.path}: no readable header line ({error})") from None
        repeated = {name for name in header if header.count(name) > 1}
        if repeated:
            names = ", ".join(sorted(repeated))
            raise UserError(f"{self.path}: the header names {names} twice; rename one column")
        return header

    def _row(self, header: list[str], cells: list[str], line: int) -> Row:
        record = dict(zip(header, cells, strict=False))
        if len(cells) != len(header):
            reason = f"line {line}: {len(cells)} cells, but the header has {len(header)}"
            return Row(line, record, "bad_csv", reason)
        return Row(line, record)

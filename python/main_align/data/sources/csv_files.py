"""CsvFile: .csv and .tsv files. A row may span several lines."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from typing import IO, Any

from ...errors import UserError
from .source import FileSource, Row
from .streams import open_text

DELIMITERS = (",", "\t", ";", "|")
MAX_FIELD = 1 << 26


class CsvFile(FileSource):
    """A table with a header. Row.line is the line on which the row starts.

    The delimiter is the one that splits the header into most columns, or that of a first line `sep=;`, as Excel writes
    it. A row of several lines that does not fit the header raises UserError, because an unclosed quote would swallow
    the rows after it.
    """

    unit = "line"
    is_untyped = True

    def rows(self) -> Iterator[Row]:
        # The csv module's default limit is too low for long responses. It is global to the process.
        csv.field_size_limit(MAX_FIELD)
        with open_text(self.file, newline="", name=self.name) as file:
            delimiter, before, lines = self._delimiter(file)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            header = self._header(reader)
            while True:
                line = before + reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    self._check_one_line(line, before + reader.line_num, str(error))
                    yield Row(line, None, "bad_csv", f"line {line}: {error}")
                    continue
                if cells:
                    yield self._row(header, cells, line, before + reader.line_num)

    def _delimiter(self, file: IO[str]) -> tuple[str, int, Iterator[str]]:
        """Return the delimiter, the number of lines before the header, and the lines from the header on."""
        first = file.readline()
        if first.lower().startswith("sep=") and len(first.rstrip()) == 5:
            return first[4], 1, iter(file)
        columns = {mark: len(next(csv.reader([first], delimiter=mark), [])) for mark in DELIMITERS}
        return max(DELIMITERS, key=columns.__getitem__), 0, itertools.chain([first], file)

    def _header(self, reader: Any) -> list[str]:
        try:
            header = [name.strip() for name in next(reader)]
        except (csv.Error, StopIteration) as error:
            raise UserError(f"{self.name}: the header line is not readable ({error})") from None
        repeated = {name for name in header if name and header.count(name) > 1}
        if repeated:
            names = ", ".join(sorted(repeated))
            raise UserError(f"{self.name}: the header names {names} twice; rename one column")
        return header

    def _row(self, header: list[str], cells: list[str], line: int, last: int) -> Row:
        record = dict(zip(header, cells, strict=False))
        if len(cells) == len(header):
            return Row(line, record)
        problem = f"{len(cells)} cells, but the header has {len(header)}"
        self._check_one_line(line, last, problem)
        return Row(line, record, "bad_csv", f"line {line}: {problem}")

    def _check_one_line(self, line: int, last: int, problem: str) -> None:
        if last > line:
            raise UserError(
                f"{self.name}: the row that starts on line {line} runs to line {last} and is broken ({problem}): "
                "a quote is not closed. Fix it there; inside a cell, quotes are doubled."
            )

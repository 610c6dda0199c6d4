"""JSON files as rows: one value a line, one array, or one object that holds the rows.

Lines and arrays are streamed; an object is loaded whole. `json_source` tells them apart by what they hold, since the
names .json and .jsonl are used for all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ...errors import UserError
from ..formats.turns import ROLE_KEYS
from .json_containers import rows_in
from .source import CHUNK, FileSource, Row
from .streams import BOM, HEAD, opened_text


class JsonLines(FileSource):
    """One JSON value a line: an object, or a list of messages."""

    unit = "line"

    def rows(self) -> Iterator[Row]:
        with opened_text(self.file, newline=None) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row_of_line(line, number)

    def count(self) -> tuple[int, int]:
        rows = lines = 0
        with opened_text(self.file, newline=None) as file:
            for line in file:
                lines += 1
                rows += not line.isspace()
        return rows, lines - rows


def _row_of_line(text: str, number: int) -> Row:
    status, reason = "ok", ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        status = "bad_encoding"
        byte = len(text[: error.start].encode("utf-8")) + 1
        reason = f"line {number}: byte {byte} is not UTF-8 (from Windows? iconv -f WINDOWS-1252 -t UTF-8)"
    try:
        # no JSON value ends in a comma, but lines cut out of an array do
        value = json.loads(text.rstrip().removesuffix(","))
    except (ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, ValueError) else "nested too deeply"
        if status == "ok":
            status, reason = "bad_json", f"line {number}: not valid JSON: {problem}"
        return Row(number, None, status, reason)
    row = row_of_value(value, number, "line")
    return Row(number, row.record, status, reason) if status != "ok" else row


def row_of_value(value: Any, number: int, unit: str) -> Row:
    """The row of one parsed value: an object, or a list of messages under the name `messages`."""
    if isinstance(value, dict):
        return Row(number, value)
    if isinstance(value, list) and (_all(value, str) or _all(value, dict)):
        return Row(number, {"messages": value})
    return Row(number, None, "bad_json", f"{unit} {number}: a JSON {type(value).__name__}, not an object")


def _all(values: list[Any], wanted: type) -> bool:
    return bool(values) and all(isinstance(value, wanted) for value in values)


class JsonArray(FileSource):
    """A file holding one array, parsed one element at a time.

    An array that breaks off or is malformed cannot be followed past that point, so it is a bad file
    and raises; `survey` finds out before any scoring starts.
    """

    def rows(self) -> Iterator[Row]:
        with opened_text(self.file, newline="") as file:
            for number, value in enumerate(self.elements(file), 1):
                yield row_of_value(value, number, "row")

    def elements(self, file: IO[str]) -> Iterator[Any]:
        """The elements of the array that the text holds. Raises UserError where it is broken."""
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
            f"{self.name}: the array is broken after row {seen}: {problem}. "
            "Mend the file, or convert it to .jsonl, where one bad row does not hide the others."
        )


class JsonDocument(FileSource):
    """One object that holds the rows (see containers.py), or objects after each other over several lines."""

    def rows(self) -> Iterator[Row]:
        try:
            values = list(_values(self.file))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self.name} is no JSON that is whole ({error}); write one row a line (.jsonl) or one array of rows"
            ) from None
        found = rows_in(values[0], self.name) if len(values) == 1 else values
        for number, value in enumerate(found, 1):
            yield row_of_value(value, number, "row")


def _values(path: Path) -> Iterator[Any]:
    """The JSON values of a file, one after the other. Raises ValueError where something else stands in it."""
    with opened_text(path, newline=None) as file:
        text = file.read()
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        if text[position] in " \t\n,":
            position += 1
            continue
        value, position = decoder.raw_decode(text, position)
        yield value


def json_source(path: Path, start: bytes, name: str | None = None) -> FileSource:
    """The reader of a JSON file that begins with `start`."""
    text = start.removeprefix(BOM).decode("utf-8", "surrogateescape").lstrip()
    first, *more = [line for line in re.split(r"[\r\n]+", text) if line.strip()] or [""]
    value = _parse(first)
    if text.startswith("["):
        if not _begins_with_turns(path):
            return JsonArray(path, name)
        return JsonDocument(path, name) if value is None else JsonLines(path, name)
    if not text.startswith("{"):
        return JsonLines(path, name)
    if not more and value is not None:
        return JsonLines(path, name) if rows_in(value, name or str(path)) == [value] else JsonDocument(path, name)
    if not more:  # one line that is broken, or that is longer than what was read of it
        whole = len(start) < HEAD or _has_second_line(path)
        return JsonLines(path, name) if whole else JsonDocument(path, name)
    lines = value is not None or (first.strip() != "{" and more[0].lstrip().startswith("{"))
    return JsonLines(path, name) if lines else JsonDocument(path, name)


def _has_second_line(path: Path) -> bool:
    with opened_text(path, newline=None) as file:
        file.readline()
        return bool(file.readline().strip())


def _parse(line: str) -> Any:
    try:
        return json.loads(line.rstrip().removesuffix(","))
    except (ValueError, RecursionError):
        return None


def _begins_with_turns(path: Path) -> bool:
    """True where the first list in a file holds messages or texts, not rows."""
    try:
        with opened_text(path, newline="") as file:
            first = next(JsonArray(path).elements(file), None)
    except UserError:
        return False
    return isinstance(first, str) or (isinstance(first, dict) and any(first.get(key) for key in ROLE_KEYS))

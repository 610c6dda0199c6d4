"""open_json, JsonLines, JsonArray, JsonDocument: JSON lines, one array, or one object with the rows.

Lines and arrays are streamed; an object is loaded whole. `open_json` distinguishes them by content, because the
endings .json and .jsonl are used for all three.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ...errors import UserError
from ..formats.messages import role_of
from .json_containers import is_message, listed_rows, rows_in
from .source import CHUNK, FileSource, Row
from .streams import BOM, HEAD, open_text


class JsonLines(FileSource):
    """One JSON value per line: an object, or a list of messages."""

    unit = "line"

    def rows(self) -> Iterator[Row]:
        with open_text(self.file, newline=None, name=self.name) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row_of_line(line, number)

    def count(self) -> tuple[int, int]:
        rows = lines = 0
        with open_text(self.file, newline=None, name=self.name) as file:
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
        # Lines copied from an array end in a comma.
        value = json.loads(text.rstrip().removesuffix(","))
    except (ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, ValueError) else "nested too deeply"
        if status == "ok":
            status, reason = "bad_json", f"line {number}: not valid JSON: {problem}"
        return Row(number, None, status, reason)
    row = row_of_value(value, number, "line")
    return Row(number, row.record, status, reason) if status != "ok" else row


def row_of_value(value: Any, number: int, unit: str) -> Row:
    """Return the row of a parsed value: an object, or a list of messages, which becomes the field `messages`."""
    if isinstance(value, dict):
        return Row(number, value)
    if isinstance(value, list) and (_all_are(value, str) or _all_are(value, dict)):
        return Row(number, {"messages": value})
    return Row(number, None, "bad_json", f"{unit} {number}: a JSON {type(value).__name__}, not an object")


def _all_are(values: list[Any], expected: type) -> bool:
    return bool(values) and all(isinstance(value, expected) for value in values)


class JsonArray(FileSource):
    """A file with one array, parsed one element at a time.

    Parsing cannot continue after a malformed element, so a malformed array raises UserError. `inspect` detects it
    before scoring starts.
    """

    def rows(self) -> Iterator[Row]:
        with open_text(self.file, newline="", name=self.name) as file:
            for number, value in enumerate(self.elements(file), 1):
                yield row_of_value(value, number, "row")

    def elements(self, file: IO[str]) -> Iterator[Any]:
        """Yield the elements of the array. Raise UserError if it is malformed."""
        decoder, buffer, position, seen = json.JSONDecoder(), "", 0, 0
        expect_value = False  # a value must follow "[" and ","; "]" may directly follow "["
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
                    # A number at the end of the buffer may continue in the next chunk.
                    if end < len(buffer):
                        yield value
                        position, seen, expect_value, grow = end, seen + 1, False, CHUNK
                        continue
            more = file.read(grow)
            if not more:
                raise self._broken(seen, problem)
            buffer, position = buffer[position:] + more, 0
            grow *= 2  # one huge element is parsed a logarithmic number of times

    def _check_end(self, rest: str, seen: int) -> None:
        if rest.strip():
            raise self._broken(seen, f"text after the closing ']': {rest.strip()[:20]!r}")

    def _broken(self, seen: int, problem: str) -> UserError:
        return UserError(
            f"{self.name}: the array is broken after row {seen}: {problem}. "
            "Fix the file, or convert it to .jsonl, where one bad row does not hide the others."
        )


class JsonDocument(FileSource):
    """One object with the rows (see json_containers.py), or several objects that span several lines each."""

    def rows(self) -> Iterator[Row]:
        try:
            values = list(_values(self.file, self.name))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self.name} is not valid JSON ({error}); write one row per line (.jsonl) or one array of rows"
            ) from None
        rows = rows_in(values[0], self.name) if len(values) == 1 else values
        for number, value in enumerate(rows, 1):
            yield row_of_value(value, number, "row")


def _values(path: Path, name: str) -> Iterator[Any]:
    """Yield the JSON values of a file. Raise ValueError if the file contains anything else."""
    with open_text(path, newline=None, name=name) as file:
        text = file.read()
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        if text[position] in " \t\n,":
            position += 1
            continue
        value, position = decoder.raw_decode(text, position)
        yield value


def open_json(path: Path, head: bytes, name: str | None = None, *, has_lines: bool = False) -> FileSource:
    """Open a JSON file by its content.

    Args:
        path: the file.
        head: the first bytes of its content.
        name: replaces the path as the name of the source. Default: the path.
        has_lines: the file is named as one with a row per line, so its only line may be a list of rows, but no columns.
            Default False.
    """
    text = head.removeprefix(BOM).decode("utf-8", "surrogateescape").lstrip()
    first, *more = [line for line in re.split(r"[\r\n]+", text) if line.strip()] or [""]
    value = _parse(first)
    if text.startswith("["):
        if not _begins_with_turns(path):
            return JsonArray(path, name)
        return JsonDocument(path, name) if value is None else JsonLines(path, name)
    if not text.startswith("{"):
        return JsonLines(path, name)
    if not more and value is None:
        line = _only_line(path) if len(head) >= HEAD else None  # it may be longer than the head
        if line is None:
            return JsonLines(path, name)
        value = _parse(line)
    if not more:
        is_row = value is not None and _is_row(value, name or str(path), has_lines)
        return JsonLines(path, name) if is_row else JsonDocument(path, name)
    is_lines = value is not None or (first.strip() != "{" and more[0].lstrip().startswith("{"))
    return JsonLines(path, name) if is_lines else JsonDocument(path, name)


def _only_line(path: Path) -> str | None:
    """Return the first line, or None if there is a second one."""
    with open_text(path, newline=None) as file:
        line = file.readline()
        return None if file.readline().strip() else line


def _is_row(value: Any, name: str, has_lines: bool) -> bool:
    return listed_rows(value, name) is None if has_lines else rows_in(value, name) == [value]


def _parse(line: str) -> Any:
    try:
        return json.loads(line.rstrip().removesuffix(","))
    except (ValueError, RecursionError):
        return None


def _begins_with_turns(path: Path) -> bool:
    """Return True if the first element of the array is a text, or a message with a known role, and not a row."""
    try:
        with open_text(path, newline="") as file:
            first = next(JsonArray(path).elements(file), None)
    except UserError:
        return False
    if not isinstance(first, dict):
        return isinstance(first, str)
    return is_message(first) and role_of(first) is not None

"""An input as a stream of rows: what every reader of a file or data set supplies.

A bad row is a Row with a status; a bad file is a UserError.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK = 1 << 20


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
    """An input whose rows can be walked any number of times.

    `name` is what the user calls it, `path` where it lies on this machine (None where it does not), `unit` what
    Row.line counts.
    """

    unit = "row"
    name: str
    path: Path | None = None

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every row in order, bad ones included; a blank line is not a row."""

    @abstractmethod
    def survey(self) -> Survey:
        """Count the rows and identify the input."""

    @abstractmethod
    def digest(self) -> str:
        """What identifies the input, as in its survey, without counting its rows."""

    def schema(self) -> Any:
        """The pyarrow schema of the rows where the format has one, else None."""
        return None


class FileSource(Source):
    def __init__(self, path: Path, name: str | None = None) -> None:
        self.file = path
        self.name = name or str(path)
        self.path = None if name else path
        self.keep: Any = None  # what must live as long as the source: a temporary file

    def survey(self) -> Survey:
        rows, blank = self.count()
        return Survey(rows, blank, self.file.stat().st_size, self.digest())

    def digest(self) -> str:
        digest = hashlib.sha256()
        with self.file.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def count(self) -> tuple[int, int]:
        """Rows and blank lines."""
        return sum(1 for _ in self.rows()), 0

"""SampleLog and read_log: measurements in a JSONL file, one line each, so that an interrupted run keeps them all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class SampleLog:
    """Append-only JSONL file. Every record is flushed to the disk as it is added.

    Args:
        path: the file; an existing one is continued.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        if self._file.tell() and not self._ends_a_line():
            self._file.write(b"\n")  # a killed run left half a line, which would swallow the next record

    def add(self, kind: str, **fields: Any) -> None:
        """Append one record and flush it."""
        self._file.write(json.dumps({"kind": kind, **fields}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _ends_a_line(self) -> bool:
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) == b"\n"


def read_log(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the records of several logs in order, without the incomplete lines of killed runs."""
    records = []
    for path in paths:
        for line in path.read_bytes().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records

"""Journal, read_records: an append-only file of checksummed records, which stores the finished work of a job.

A record is `length u32 | crc32 u32 | header length u32 | header JSON | tensors (safetensors)`, little-endian. The
checksum covers everything after itself, and every append is flushed to the disk. When a journal is opened, a record
that was torn by a kill fails its checksum and is removed.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from ..errors import UserError
from .atomic import lock, naming_full_disk

FRAME = struct.Struct("<II")
HEADER = struct.Struct("<I")

Record = tuple[dict[str, Any], dict[str, np.ndarray]]


class Journal:
    """One open journal file, locked against a second process. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab+")
        if not lock(self._file):
            self._file.close()
            raise UserError(f"{path}: another main-align is writing this output; wait for it or use another -o")
        self._remove_torn_tail()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with naming_full_disk(self.path):  # closing writes the rest again
            self._file.close()

    def append(self, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> None:
        """Append a record and flush it to the disk."""
        text = json.dumps(header).encode()
        # safetensors writes an array's memory as it lies, so a transposed array would come back scrambled
        arrays = {name: np.ascontiguousarray(array) for name, array in (tensors or {}).items()}
        body = HEADER.pack(len(text)) + text + (save(arrays) if arrays else b"")
        with naming_full_disk(self.path):
            self._file.write(FRAME.pack(len(body), zlib.crc32(body)) + body)
            self._file.flush()
            os.fsync(self._file.fileno())

    def headers(self) -> Iterator[dict[str, Any]]:
        """Yield the headers of all records in order, and skip the tensors."""
        with self.path.open("rb") as file:
            while frame := file.read(FRAME.size):
                length, _ = FRAME.unpack(frame)
                (size,) = HEADER.unpack(file.read(HEADER.size))
                yield json.loads(file.read(size))
                file.seek(length - HEADER.size - size, os.SEEK_CUR)

    def records(self) -> Iterator[Record]:
        """Yield all records in order, header and tensors."""
        return read_records(self.path)

    def _remove_torn_tail(self) -> None:
        valid = 0
        with self.path.open("rb") as file:
            while _read_body(file) is not None:
                valid = file.tell()
        if valid < self.path.stat().st_size:
            self._file.truncate(valid)
            os.fsync(self._file.fileno())


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a journal that is complete, or of one that this process has open."""
    with path.open("rb") as file:
        while (body := _read_body(file)) is not None:
            (size,) = HEADER.unpack_from(body)
            tensors = body[HEADER.size + size :]
            header = json.loads(body[HEADER.size : HEADER.size + size])
            yield header, load(tensors) if tensors else {}


def _read_body(file: Any) -> bytes | None:
    """Return the next body, or None at the end of the file or at a record that fails its checksum."""
    frame = file.read(FRAME.size)
    if len(frame) < FRAME.size:
        return None
    length, crc = FRAME.unpack(frame)
    if length < HEADER.size:  # a power cut may leave zeros, and 0 is the crc32 of no bytes
        return None
    body: bytes = file.read(length)
    return body if len(body) == length and zlib.crc32(body) == crc else None

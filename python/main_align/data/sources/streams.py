"""Input files as streams of bytes and text: decompressed by what they hold, refused by name where they are no text."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from ...errors import UserError

HEAD = 1 << 16
BOM = b"\xef\xbb\xbf"
COMPRESSED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}
NO_TEXT = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the data; fetch it with: git lfs pull"),
    (b"PK\x03\x04", "is a zip archive or an Excel workbook; unpack it, or export the sheet as .csv"),
    (b"%PDF", "is a PDF; give a file of rows"),
    (b"SQLite format 3", "is an SQLite database; export its table as .csv or .jsonl"),
    (b"\x80\x04", "is a pickle, which is never loaded; write .jsonl or .parquet instead"),
    (b"\x80\x05", "is a pickle, which is never loaded; write .jsonl or .parquet instead"),
    (b"\xff\xfe\x00\x00", "is UTF-32; convert it with: iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8"),
)
WEB_PAGE = (b"<!doctype html", b"<html")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed where it is compressed, whatever its name.

    Raises UserError, also while it is read, where the compressed data is damaged.
    """
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        ending = next((e for e, magic in COMPRESSED.items() if start.startswith(magic)), None)
        if ending is None:
            yield file
            return
        try:
            yield _decompressed(file, ending)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise UserError(
                f"{path}: the {ending} data is damaged or cut off ({error}); fetch or compress it again"
            ) from None


def _decompressed(file: BinaryIO, ending: str) -> BinaryIO:
    if ending == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if ending == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(file))
    if ending == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(file))
    import pyarrow as pa

    stream: Any = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    return cast(BinaryIO, io.BufferedReader(stream))


@contextmanager
def opened_text(path: Path, newline: str | None) -> Iterator[IO[str]]:
    """The same as UTF-8 text; bytes that are none become lone surrogates, so they stay inside their own row."""
    with opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
        try:
            yield text
        finally:
            text.detach()


def read_head(path: Path) -> bytes:
    """The first bytes of the content, at most HEAD. Raises UserError for what holds no rows of text."""
    with opened(path) as file:
        start = file.read(HEAD)
    if not start:
        raise UserError(f"{path} is empty (0 bytes); write it again, or give another file")
    for magic, problem in NO_TEXT:
        if start.startswith(magic):
            raise UserError(f"{path} {problem}")
    if start.lstrip()[:16].lower().startswith(WEB_PAGE):
        raise UserError(
            f"{path} is a web page, not the data; download the file itself (on the hub: /resolve/, not /blob/)"
        )
    if b"\x00" in (start[1:2], start[0:1]):
        raise UserError(f"{path} is UTF-16 or binary; text converts with: iconv -f UTF-16LE -t UTF-8")
    return start


def is_compressed(path: Path) -> bool:
    """True where `opened` decompresses the file."""
    with path.open("rb") as file:
        start = file.read(8)
    return any(start.startswith(magic) for magic in COMPRESSED.values())

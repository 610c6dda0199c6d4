"""open_bytes, open_text, read_head: input files as streams, decompressed by content."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from ...errors import UserError

HEAD = 1 << 16  # bytes
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Compression:
    """One compression: its file name ending, the first bytes that identify it, and the function that opens it."""

    ending: str
    signatures: tuple[bytes, ...]
    open: Callable[[BinaryIO], BinaryIO]


def _open_zstd(file: BinaryIO) -> BinaryIO:
    import pyarrow as pa

    stream: Any = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    return cast(BinaryIO, io.BufferedReader(stream))


# pzstd begins with such a frame, which holds sizes and no data
ZSTD_SKIPPABLE = tuple(bytes((number, 0x2A, 0x4D, 0x18)) for number in range(0x50, 0x60))
COMPRESSIONS = (
    Compression(".gz", (b"\x1f\x8b",), lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file))),
    Compression(".bz2", (b"BZh",), lambda file: cast(BinaryIO, bz2.BZ2File(file))),
    Compression(".xz", (b"\xfd7zXZ\x00",), lambda file: cast(BinaryIO, lzma.LZMAFile(file))),  # noqa: SIM115
    Compression(".zst", (b"\x28\xb5\x2f\xfd", *ZSTD_SKIPPABLE), _open_zstd),
)
REFUSED = (
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
def open_bytes(path: Path, name: str | None = None) -> Iterator[BinaryIO]:
    """Open a file for reading and decompress it if its content is compressed, whatever its name.

    Args:
        path: the file.
        name: replaces the path in messages. Default: the path.

    Raises:
        UserError: the compressed data is damaged. It may be raised while the file is read.
    """
    with path.open("rb") as file:
        compression = _compression(file)
        if compression is None:
            yield file
            return
        try:
            yield compression.open(file)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise UserError(
                f"{name or path}: the {compression.ending} data is damaged or truncated ({error}); "
                "fetch or compress it again"
            ) from None


def _compression(file: BinaryIO) -> Compression | None:
    start = file.read(8)
    file.seek(0)
    return next((compression for compression in COMPRESSIONS if start.startswith(compression.signatures)), None)


@contextmanager
def open_text(path: Path, newline: str | None, name: str | None = None) -> Iterator[IO[str]]:
    """Open a file as UTF-8 text. An invalid byte becomes a lone surrogate, so that it affects its own row only."""
    with open_bytes(path, name) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
        try:
            yield text
        finally:
            text.detach()


def read_head(path: Path) -> bytes:
    """Return the first bytes of the content, at most HEAD. Raise UserError if the content is not rows."""
    with open_bytes(path) as file:
        head = file.read(HEAD)
    if not head:
        raise UserError(f"{path} is empty (0 bytes); write it again, or give another file")
    for signature, problem in REFUSED:
        if head.startswith(signature):
            raise UserError(f"{path} {problem}")
    if head.lstrip()[:16].lower().startswith(WEB_PAGE):
        raise UserError(
            f"{path} is a web page, not the data; download the file itself (on the hub: /resolve/, not /blob/)"
        )
    if b"\x00" in (head[1:2], head[0:1]):
        raise UserError(f"{path} is UTF-16 or binary; convert text with: iconv -f UTF-16LE -t UTF-8")
    return head


def is_compressed(path: Path) -> bool:
    """Return True if `open_bytes` decompresses the file."""
    with path.open("rb") as file:
        return _compression(file) is not None

"""FILE_FORMATS, open_file: the file formats that are read, and the choice between them.

To add a file format, write its FileSource and add an entry to FILE_FORMATS. The help and docs/data.md are generated
from this list and from COMPRESSIONS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...errors import UserError
from .arrow_files import ArrowFile, ParquetFile
from .csv_files import CsvFile
from .json_files import open_json
from .source import FileSource
from .streams import BOM, COMPRESSIONS, is_compressed, read_head


@dataclass(frozen=True)
class FileFormat:
    """One file format.

    Args:
        endings: file name endings, in lower case.
        content: description for the documentation.
        open: called with the path, the first bytes of the content and a name or None; returns the source.
        signatures: first bytes that identify the format whatever the ending. A format with signatures is binary
            and cannot be compressed. Default: none, a text format.
    """

    endings: tuple[str, ...]
    content: str
    open: Callable[[Path, bytes, str | None], FileSource]
    signatures: tuple[bytes, ...] = ()

    @property
    def is_text(self) -> bool:
        """Return True for a text format, which may be compressed."""
        return not self.signatures


FILE_FORMATS = (
    FileFormat(
        (".jsonl", ".ndjson"),
        "one JSON object, or one list of messages, per line",
        partial(open_json, has_lines=True),
    ),
    FileFormat(
        (".json",),
        "an array; an object with an array (`data`, `instances`); columns, as pandas writes them; or JSON lines",
        open_json,
    ),
    FileFormat(
        (".csv", ".tsv"),
        "a table with a header; delimited by comma, semicolon, tab or bar; lists as JSON text",
        lambda path, head, name: CsvFile(path, name),
    ),
    FileFormat(
        (".parquet",),
        "a table, with or without nested types",
        lambda path, head, name: ParquetFile(path, name),
        signatures=(b"PAR1",),
    ),
    FileFormat(
        (".arrow",),
        "an Arrow file or stream",
        lambda path, head, name: ArrowFile(path, name),
        signatures=(b"ARROW1", b"\xff\xff\xff\xff"),
    ),
)
BY_ENDING = {ending: file_format for file_format in FILE_FORMATS for ending in file_format.endings}
ENDINGS = ", ".join(BY_ENDING)
COMPRESSED_ENDINGS = ", ".join(compression.ending for compression in COMPRESSIONS)


def file_ending(path: Path) -> str:
    """Return the ending of a file name in lower case, without the ending of a compression."""
    endings = [suffix.lower() for suffix in path.suffixes]
    if len(endings) > 1 and endings[-1] in (compression.ending for compression in COMPRESSIONS):
        endings.pop()
    return endings[-1] if endings else ""


def open_file(path: Path, name: str | None = None) -> FileSource:
    """Open a file by its content, and by its ending if the content allows several formats.

    Args:
        path: the file.
        name: replaces the path as the name of the source; the ending is then ignored. Default: the path.

    Raises:
        UserError: the ending is unknown, or the content is not rows.
    """
    ending = "" if name else file_ending(path)
    if not name and ending not in BY_ENDING:
        raise UserError(
            f"{path}: unknown file format {path.suffix!r}; expected {ENDINGS}, text also with {COMPRESSED_ENDINGS}. "
            "Rename the file if it has one of these formats."
        )
    head = read_head(path)
    file_format = _detect(head, ending)
    if not file_format.is_text and is_compressed(path):
        raise UserError(f"{name or path}: compressed tables are not supported; decompress the file first")
    return file_format.open(path, head, name)


def _detect(head: bytes, ending: str) -> FileFormat:
    for file_format in FILE_FORMATS:
        if file_format.signatures and head.startswith(file_format.signatures):
            return file_format
    if ending:
        return BY_ENDING[ending]
    is_json = head.lstrip(BOM + b" \t\r\n").startswith((b"{", b"["))
    return BY_ENDING[".json" if is_json else ".csv"]

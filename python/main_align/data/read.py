"""Reads instruction-response pairs from anything: `read_pairs` streams them, bad rows included."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import UserError
from .formats.record import Fields, Notes, pair_from_record
from .formats.view import View
from .pairs import Pair
from .sources.arrow_files import ARROW_FILE, Arrow, HubDataset, Parquet
from .sources.csv_files import Csv
from .sources.json_files import json_source
from .sources.source import FileSource, Row, Source
from .sources.stdin import STDIN, spooled
from .sources.streams import COMPRESSED, is_compressed, read_head

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
NO_FIELDS = Fields()
FIRST = 1000  # rows that are looked at before a model is loaded


@dataclass(frozen=True)
class FileKind:
    """A kind of file: its endings, what it holds, and whether it is text, which may be compressed."""

    endings: tuple[str, ...]
    holds: str
    text: bool = True


FILE_KINDS = (
    FileKind((".jsonl", ".ndjson"), "one JSON object, or one list of messages, a line"),
    FileKind(
        (".json",),
        "an array; an object that holds one (`data`, `instances`); columns, as pandas writes them; or lines",
    ),
    FileKind((".csv", ".tsv"), "a table with a header; comma, semicolon, tab or bar; lists as JSON text"),
    FileKind((".parquet",), "a table, structs and lists included", text=False),
    FileKind((".arrow",), "an Arrow file or stream", text=False),
)
ENDINGS = tuple(ending for kind in FILE_KINDS for ending in kind.endings)


def read_pairs(
    source: str | Path, *, fields: Fields = NO_FIELDS, split: str | None = None, config: str | None = None
) -> Iterator[Pair]:
    """Stream the pairs of a file or data set, in order.

    Args:
        source: a file of one of FILE_KINDS, text also compressed (.gz, .bz2, .xz, .zst); `-` for standard input; a
            folder saved by `datasets`; or a hub id.
        fields: field names that override the recognised forms (see main_align.dialects).
        split: the split of a `datasets` source.
        config: the configuration of a `datasets` source.

    Raises:
        UserError: the file is absent, empty, of an unknown kind or unreadable. A bad row never
            raises: it comes as a Pair whose status and reason say what is wrong.
    """
    return pairs_of(open_source(source, split=split, config=config), fields)


def pairs_of(source: Source, fields: Fields, notes: Notes | None = None) -> Iterator[Pair]:
    """The pairs of an opened source; `notes` gathers what is noticed on the way."""
    return (pair for pair, _ in rows_of(source, fields, notes))


def rows_of(source: Source, fields: Fields, notes: Notes | None = None) -> Iterator[tuple[Pair, dict[str, Any] | None]]:
    """Each pair with the record it came from (None where the row could not be parsed)."""
    check_fields(fields)
    for row in source.rows():
        pair = _pair_of(row, fields, source.unit, notes)
        if notes is not None and pair.own_id:
            digest = hashlib.blake2b(pair.id.encode(), digest_size=16).digest()
            notes.repeats += digest in notes.seen
            notes.seen.add(digest)
        yield pair, row.record


def _pair_of(row: Row, fields: Fields, unit: str, notes: Notes | None) -> Pair:
    if row.record is None:
        return Pair(id=str(row.line), line=row.line, status=row.status, reason=row.reason, unit=unit)
    pair = pair_from_record(row.record, row.line, fields, unit=unit, notes=notes if row.status == "ok" else None)
    if row.status == "ok":
        return pair
    return replace(pair, instruction="", response="", context=(), status=row.status, reason=row.reason)


def check_fields(fields: Fields) -> None:
    """Raise UserError unless instruction and response are named together or not at all."""
    if bool(fields.instruction) != bool(fields.response):
        raise UserError("name both sides: --instruction-field and --response-field go together")


def check_readable(source: Source, fields: Fields) -> Notes:
    """Look at the first rows and return what was noticed.

    Raises UserError where none of them can be scored, or where a named field is in none of them.
    """
    notes, reasons, names, rows = Notes(), dict[str, str](), dict[str, None](), 0
    wanted = {"--id-field": fields.id, "--input-field": fields.input, "--system-field": fields.system}
    missing = {option: name for option, name in wanted.items() if name}
    good = False
    for pair, record in islice(rows_of(source, fields, notes), FIRST):
        rows += 1
        names.update(dict.fromkeys(map(str, record or ())))
        missing = {option: name for option, name in missing.items() if not View(record or {}).has(name)}
        blank = pair.status == "ok" and not (pair.instruction.strip() and pair.response.strip())
        good = good or (pair.status == "ok" and not blank)
        if pair.status != "ok":
            reasons.setdefault(pair.status, pair.reason)
        elif blank:
            side = "response" if pair.instruction.strip() else "instruction"
            reasons.setdefault(f"empty_{side}", f"{pair.where}: the {side} holds no text")
    if not rows:
        raise UserError(f"{source.name} holds no rows; give a file with at least one pair")
    if not good:
        raise UserError(f"{source.name}: none of the first {rows} rows can be scored. {first_reasons(reasons)}")
    if missing:
        absent = ", ".join(f"{option} {name}" for option, name in missing.items())
        raise UserError(
            f"{source.name}: no row has the field of {absent}; its fields are {', '.join(map(repr, names))}"
        )
    return notes


def first_reasons(reasons: dict[str, str]) -> str:
    """The first reason of each status as one text."""
    return "; ".join(f"{status}: {reason}" for status, reason in reasons.items())


def open_source(source: str | Path | Source, *, split: str | None = None, config: str | None = None) -> Source:
    """The Source behind a path, `-` or a hub id; a Source is returned as it is.

    Raises UserError where there is none, or where it is no file of rows.
    """
    if isinstance(source, Source):
        return source
    if str(source) == STDIN:
        file = spooled()
        opened = _open_file(Path(file.name), STDIN)
        opened.keep = file
        return opened
    path = Path(source)
    if path.is_dir():
        return HubDataset(str(source), split, config)
    endings = [suffix.lower() for suffix in path.suffixes]
    ending = endings[-2] if endings[-1:] and endings[-1] in COMPRESSED and len(endings) > 1 else "".join(endings[-1:])
    known = ", ".join(ENDINGS)
    if path.is_file():
        if ending not in ENDINGS:
            raise UserError(
                f"{path}: unknown kind of file {path.suffix!r}; known are {known}, text also with "
                f"{', '.join(COMPRESSED)}. Rename it if it is one of these."
            )
        for option, value in (("split", split), ("config", config)):
            if value:
                raise UserError(f"{path} is one file and has no {option}s; leave out --{option} {value}")
        return _open_file(path, None, ending)
    if ending not in ENDINGS and HUB_ID.fullmatch(str(source)):
        return HubDataset(str(source), split, config)
    raise UserError(f"{path}: no such file. INPUT is a file ({known}), `-`, a folder or a hub id.")


def _open_file(path: Path, name: str | None, ending: str = "") -> FileSource:
    """The reader by what a file holds, by its ending where that leaves a choice."""
    start = read_head(path)
    table = _table(start, ending)
    if table is not None:
        if is_compressed(path):
            raise UserError(f"{name or path}: a compressed table cannot be read from the middle; decompress it first")
        return table(path, name)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    is_json = text.startswith((b"{", b"["))
    if ending in (".csv", ".tsv") or (not ending and not is_json):
        return Csv(path, name)
    return json_source(path, start, name)


def _table(start: bytes, ending: str) -> type[FileSource] | None:
    if start.startswith(b"PAR1") or ending == ".parquet":
        return Parquet
    return Arrow if start.startswith((ARROW_FILE, b"\xff\xff\xff\xff")) or ending == ".arrow" else None

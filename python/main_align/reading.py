"""Reads instruction-response pairs from anything: `read_pairs` streams them, bad rows included."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import UserError
from .forms import Fields, pair_from_record
from .records import Pair
from .sources import BOM, Csv, FileSource, JsonArray, JsonLines, Row, Source
from .tables import HubDataset, Parquet

READERS: dict[str, type[FileSource]] = {
    ".jsonl": JsonLines,
    ".json": JsonArray,
    ".parquet": Parquet,
    ".csv": Csv,
}

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
NO_FIELDS = Fields()


def read_pairs(source: str | Path, *, fields: Fields = NO_FIELDS, split: str | None = None) -> Iterator[Pair]:
    """Stream the pairs of a file or data set, in order.

    Args:
        source: a .jsonl, .json (array), .parquet or .csv file, a folder saved by `datasets`, or a
            hub id.
        fields: field names that override the recognised forms (see main_align.forms).
        split: the split of a `datasets` source.

    Raises:
        UserError: the file is absent, empty, of an unknown kind or unreadable. A bad row never
            raises: it comes as a Pair whose status and reason say what is wrong.
    """
    return pairs_of(open_source(source, split=split), fields)


def pairs_of(source: Source, fields: Fields) -> Iterator[Pair]:
    """The pairs of an opened source."""
    return (pair for pair, _ in rows_of(source, fields))


def rows_of(source: Source, fields: Fields) -> Iterator[tuple[Pair, dict[str, Any] | None]]:
    """Each pair with the record it came from (None where the row could not be parsed).

    The later of two rows with one id of their own gets the status duplicate_id; a line number that
    stands in for an id is no claim to it. Ids already seen are kept as 16-byte digests.
    """
    check_fields(fields)
    seen: set[bytes] = set()
    for row in source.rows():
        pair = _pair_of(row, fields, source.unit)
        if (row.record or {}).get(fields.id or "id") not in (None, ""):
            digest = hashlib.blake2b(pair.id.encode(), digest_size=16).digest()
            if digest in seen and pair.status == "ok":
                reason = f"{source.unit} {row.line}: an earlier row has the id {pair.id!r}"
                pair = Pair(id=pair.id, line=row.line, status="duplicate_id", reason=reason)
            seen.add(digest)
        yield pair, row.record


def _pair_of(row: Row, fields: Fields, unit: str) -> Pair:
    pair = Pair(id=str(row.line), line=row.line)
    if row.record is not None:
        pair = pair_from_record(row.record, row.line, fields, unit=unit)
    if row.status == "ok":
        return pair
    return replace(pair, instruction="", response="", context=(), status=row.status, reason=row.reason)


def check_fields(fields: Fields) -> None:
    """Raise UserError unless instruction and response are named together or not at all."""
    if bool(fields.instruction) != bool(fields.response):
        raise UserError("name both sides: --instruction-field and --response-field go together")


def open_source(source: str | Path, *, split: str | None = None) -> Source:
    """The Source behind a path or hub id. Raises UserError where there is none."""
    path = Path(source)
    if path.is_dir():
        return HubDataset(str(source), split)
    reader = READERS.get(path.suffix.lower())
    known = ", ".join(READERS)
    if path.is_file():
        if reader is None:
            raise UserError(
                f"{path}: unknown kind of file {path.suffix!r}; known are {known}. Rename it if it is one of these."
            )
        if split:
            raise UserError(f"{path} is one file and has no splits; leave out --split {split}")
        return _check_file(path, reader)
    if reader is None and HUB_ID.fullmatch(str(source)):
        return HubDataset(str(source), split)
    raise UserError(f"{path}: no such file. INPUT is a file ({known}), a folder or a hub id.")


def _check_file(path: Path, reader: type[FileSource]) -> Source:
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); write it again, or give another file")
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if reader is not Parquet and start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8")
    if reader is JsonArray and not start.removeprefix(BOM).lstrip().startswith(b"["):
        return _json_lines_in_disguise(path)
    return reader(path)


def _json_lines_in_disguise(path: Path) -> Source:
    """JSON lines under the name .json are common; a single JSON object is not a data set."""
    with path.open("rb") as file:
        first = next((line for line in file if line.removeprefix(BOM).strip()), b"")
    try:
        value = json.loads(first.decode("utf-8-sig"))
    except ValueError:
        value = None
    if isinstance(value, dict):
        return JsonLines(path)
    raise UserError(f"{path} is not a JSON array of objects; write [{{...}}, ...] or use .jsonl")

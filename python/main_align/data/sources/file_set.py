"""FileSet: several files as one source, in the order given."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..fields import NO_FIELDS, Fields, Notes
from ..formats.conversion import as_label
from ..pairs import Pair
from .source import FileSource, Row, Source, SourceInfo


class FileSet(Source):
    """Files that are read one after the other.

    A row without an id of its own gets the id `FILE:LINE`, and messages name the file. FILE is the path within the
    deepest folder that holds all of the files.

    Args:
        members: the files, each opened.

    Raises:
        UserError: a file is given twice.
    """

    def __init__(self, members: Sequence[FileSource]) -> None:
        places = [Path(os.path.abspath(member.file)) for member in members]  # without the .. of a path
        folder = _common_folder(places)
        super().__init__(f"{len(members)} files in {folder}", folder)
        self.members: dict[str, FileSource] = {}
        for member, place in zip(members, places, strict=True):
            name = place.relative_to(folder).as_posix()
            if name in self.members:
                raise UserError(f"{member.file} is given twice; leave it out once")
            self.members[name] = member
        self._infos: dict[str, SourceInfo] = {}
        self.can_jump = all(member.can_jump for member in members)

    def infos(self) -> dict[str, SourceInfo]:
        """Return the number of rows and the digest of each file, computed once."""
        if not self._infos:
            self._infos = {name: member.inspect() for name, member in self.members.items()}
        return self._infos

    def rows(self) -> Iterator[Row]:
        for name, member in self.members.items():
            yield from _of_file(name, member.rows())

    def rows_from(self, start: int) -> Iterator[Row]:
        for name, member in self.members.items():
            count = self.infos()[name].rows
            if start < count:
                yield from _of_file(name, member.rows_from(start))
            start = max(0, start - count)

    def lengths(self) -> list[int]:
        """Return the number of rows of each file."""
        return [info.rows for info in self.infos().values()]

    def pair_of(self, row: Row, fields: Fields = NO_FIELDS, notes: Notes | None = None) -> Pair:
        pair = self.members[row.file].pair_of(row, fields, notes)
        file = as_label(row.file)  # a name may have bytes that are not UTF-8
        reason = f"{file}, {pair.reason}" if pair.reason else ""
        own = pair.id if pair.own_id else f"{file}:{pair.line}"
        return replace(pair, id=own, unit=f"{file}, {pair.unit}", reason=reason)

    def inspect(self) -> SourceInfo:
        infos = self.infos()
        return SourceInfo(
            rows=sum(info.rows for info in infos.values()),
            blank_lines=sum(info.blank_lines for info in infos.values()),
            size=sum(info.size for info in infos.values()),
            digest=_together({name: info.digest for name, info in infos.items()}),
        )

    def digest(self) -> str:
        return _together({name: member.digest() for name, member in self.members.items()})

    def schema(self) -> Any:
        import pyarrow as pa

        schemas = [member.schema() for member in self.members.values()]
        if any(schema is None for schema in schemas):
            return None
        try:
            unified = pa.unify_schemas(schemas, promote_options="permissive")
            same = all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)
            return unified if same else unified.remove_metadata()  # labels of one file may be in another order
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return None  # the types are then inferred from the rows

    def paths(self) -> list[str]:
        return [str(member.file.absolute()) for member in self.members.values()]

    def address(self) -> dict[str, Any]:
        return {"files": self.paths()}


def _of_file(name: str, rows: Iterator[Row]) -> Iterator[Row]:
    return (replace(row, file=name) for row in rows)


def _common_folder(files: Sequence[Path]) -> Path:
    folder = files[0].parent
    while not all(file.is_relative_to(folder) for file in files):
        folder = folder.parent
    return folder


def _together(digests: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for name, own in digests.items():
        digest.update(f"{name}\0{own}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()

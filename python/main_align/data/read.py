"""read_pairs, open_source, open_address: instruction-response pairs from any file, files or data set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .fields import NO_FIELDS, Fields
from .pairs import Pair, check_text
from .sources.file_formats import BY_ENDING, ENDINGS, file_ending, open_file
from .sources.file_set import FileSet
from .sources.hub_dataset import HubDataset
from .sources.listing import expanded, is_listing
from .sources.source import FileSource, Source
from .sources.stdin import STDIN, open_stdin

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def read_pairs(
    source: str | Path | Sequence[str | Path],
    *,
    fields: Fields = NO_FIELDS,
    split: str | None = None,
    config: str | None = None,
) -> Iterator[Pair]:
    """Read the pairs of a file or data set, in order.

    Args:
        source: a file in one of FILE_FORMATS; text formats may be compressed (.gz, .bz2, .xz, .zst). Or `-` for
            standard input, a folder saved by `datasets`, or a hub id. Or several files: a pattern (`data/*.parquet`),
            a folder of files, or a list.
        fields: field names that take precedence over the recognised record formats. Default: none.
        split: the split of a `datasets` source. Default: the only one.
        config: the configuration of a `datasets` source. Default: the data set's own default.

    Returns:
        An iterator of pairs, one per row. A bad row, or one whose instruction or response has no text, is a Pair with
        a status other than ok and a reason.

    Raises:
        UserError: the source is absent, empty, unreadable or has an unknown format.
    """
    return map(check_text, open_source(source, split=split, config=config).pairs(fields))


def open_source(
    source: str | Path | Sequence[str | Path] | Source, *, split: str | None = None, config: str | None = None
) -> Source:
    """Open a path, `-`, a hub id, a pattern, or a list of them. A Source is returned as is.

    Args:
        source: a file, a folder, `-`, a hub id, a pattern of files, a list of files, or a Source.
        split: the split of a `datasets` source. Default: the only one.
        config: the configuration of a `datasets` source. Default: the data set's own default.

    Raises:
        UserError: the source does not exist, or it is not a file of rows.
    """
    if isinstance(source, Source):
        return source
    if not isinstance(source, (str, Path)):
        return _listed(_open_files([file for item in source for file in _files_of(item)], split, config), *source)
    if str(source) == STDIN:
        return open_stdin()
    path = Path(source)
    if path.is_file():
        return _open_file(path, split, config)
    if not (path.is_dir() and (split or config)) and (files := expanded(source)):
        return _listed(_open_files(files, split, config), source)
    if path.is_dir() or (file_ending(path) not in BY_ENDING and HUB_ID.fullmatch(str(source))):
        return HubDataset(str(source), split, config)
    raise UserError(f"{path}: no such file. Give a file ({ENDINGS}), a folder, a pattern, `-` or a hub id.")


def open_address(address: Mapping[str, Any]) -> Source:
    """Open a source in another process than the one that chose it.

    Args:
        address: what `Source.address` returned.
    """
    if "files" in address:
        return FileSet([open_file(Path(file)) for file in address["files"]])
    if "file" in address:
        return open_file(Path(address["file"]), address["name"])
    return HubDataset(address["dataset"], address["split"], address["config"])


def _files_of(item: str | Path) -> list[Path]:
    """Return the files that an item of a list stands for; there is at least one."""
    files = expanded(item)
    if not files:
        what = f"the folder holds no file of rows ({ENDINGS})" if Path(item).is_dir() else "no such file"
        raise UserError(f"{item}: {what}; several sources must be files, folders of files or patterns")
    return files


def _open_files(files: Sequence[Path], split: str | None, config: str | None) -> Source:
    if not files:
        raise UserError(f"there is no file to read; give files ({ENDINGS}), a folder of files or a pattern")
    opened = [_open_file(file, split, config) for file in files]
    return opened[0] if len(opened) == 1 else FileSet(opened)


def _listed(source: Source, *items: str | Path) -> Source:
    source.listings = tuple(str(item) for item in items if is_listing(item))
    return source


def _open_file(path: Path, split: str | None, config: str | None) -> FileSource:
    opened = open_file(path)
    for option, value in (("split", split), ("config", config)):
        if value:
            raise UserError(f"{path} is one file and has no {option}s; leave out --{option} {value}")
    return opened

"""read_pairs, open_source: instruction-response pairs from any file or data set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from .fields import NO_FIELDS, Fields
from .pairs import Pair, check_text
from .sources.file_formats import BY_ENDING, ENDINGS, file_ending, open_file
from .sources.hub_dataset import HubDataset
from .sources.source import Source
from .sources.stdin import STDIN, open_stdin

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def read_pairs(
    source: str | Path, *, fields: Fields = NO_FIELDS, split: str | None = None, config: str | None = None
) -> Iterator[Pair]:
    """Read the pairs of a file or data set, in order.

    Args:
        source: a file in one of FILE_FORMATS; text formats may be compressed (.gz, .bz2, .xz, .zst). Or `-` for
            standard input, a folder saved by `datasets`, or a hub id.
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


def open_source(source: str | Path | Source, *, split: str | None = None, config: str | None = None) -> Source:
    """Open a path, `-` or a hub id. A Source is returned as is.

    Args:
        source: a file, a folder, `-`, a hub id, or a Source.
        split: the split of a `datasets` source. Default: the only one.
        config: the configuration of a `datasets` source. Default: the data set's own default.

    Raises:
        UserError: the source does not exist, or it is not a file of rows.
    """
    if isinstance(source, Source):
        return source
    if str(source) == STDIN:
        return open_stdin()
    path = Path(source)
    if path.is_dir():
        return HubDataset(str(source), split, config)
    if path.is_file():
        opened = open_file(path)
        for option, value in (("split", split), ("config", config)):
            if value:
                raise UserError(f"{path} is one file and has no {option}s; leave out --{option} {value}")
        return opened
    if file_ending(path) not in BY_ENDING and HUB_ID.fullmatch(str(source)):
        return HubDataset(str(source), split, config)
    raise UserError(f"{path}: no such file. INPUT is a file ({ENDINGS}), `-`, a folder or a hub id.")

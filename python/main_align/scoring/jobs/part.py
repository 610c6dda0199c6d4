"""write_part, read_notes, PartNotes: the scores of one unit as a .parquet file, with notes on how it was read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...data.write import write_rows
from ..columns import COLUMNS
from ..score_file import score_types

METADATA = b"main_align"


@dataclass(frozen=True)
class PartNotes:
    """Observations about the rows of a part.

    Args:
        unused: for each text field that is not part of the pair, the number of rows that have it.
        numbered: positions of the rows without an id of their own.
    """

    unused: dict[str, int]
    numbered: list[int]


def write_part(path: Path, rows: Iterable[Mapping[str, Any]], notes: PartNotes) -> None:
    """Write the rows of a unit."""
    import pyarrow as pa

    metadata = {METADATA: json.dumps(asdict(notes), sort_keys=True)}
    write_rows(path, rows, pa.schema(list(score_types(COLUMNS).items()), metadata=metadata))


def read_notes(path: Path) -> PartNotes:
    """Return the notes of a part."""
    from pyarrow import parquet

    return PartNotes(**json.loads(parquet.read_schema(path).metadata[METADATA]))

"""merge_scores: one score file from an output folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..data.write import check_output
from ..errors import UserError
from .manifest import read_manifest, write_manifest
from .score_file import score_parts, score_rows_of, write_scores


def merge_scores(folder: str | Path, out: str | Path) -> dict[str, Any]:
    """Join the parts of an output folder into one score file, the same that a job with this output would have written.

    Args:
        folder: the folder, as written by `score_file`.
        out: the file; its ending is .parquet, .jsonl or .csv.

    Returns:
        The manifest, which is also written beside `out`.

    Raises:
        UserError: the folder is not complete, or `out` exists.
    """
    folder, out = Path(folder), Path(out)
    check_output(out)
    score_parts(folder)
    if out.exists():
        raise UserError(f"{out} exists; give another -o, or delete it first")
    manifest = read_manifest(folder)
    assert manifest is not None

    def rows() -> Iterator[dict[str, Any]]:
        yield from score_rows_of(folder)
        write_manifest(out, manifest)  # before `out` appears, because a run after a kill refuses an `out` that exists

    write_scores(out, rows())
    return manifest

"""merge: the command `main-align merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.write import OUTPUT_ENDINGS


def merge(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder of main-align score.")],
    out: Annotated[Path, typer.Option("-o", "--output", help=f"Score file to write: {OUTPUT_ENDINGS}.")],
) -> None:
    """Join the parts of an output folder into one score file.

    The file has the same bytes as if main-align score had written it. main-align filter and report read the folder as
    well, so this is for other tools.

    **Example**

    `main-align merge scored/ -o scores.parquet`
    """
    from ..scoring.merge import merge_scores

    manifest = merge_scores(folder, out)
    typer.echo(f"{manifest['rows']:,} rows: {out}")

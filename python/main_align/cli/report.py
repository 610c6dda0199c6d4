"""report: the command `main-align report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# Optional[...] below, not X | None: typer evaluates these annotations on every supported Python.
# ruff: noqa: UP045


def report(
    scores: Annotated[
        Path,
        typer.Argument(metavar="SCORES", help="Score file written by main-align score, or a folder of score files."),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="Page to write: .html.")],
    group_by: Annotated[
        Optional[str], typer.Option(help="Field of the data whose values are compared; nested: meta.source.")
    ] = None,
    source: Annotated[
        Optional[str],
        typer.Option("--input", help="The scored data set. Default: the path in the manifest."),
    ] = None,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Leave out ids, reasons and texts, for private data.")
    ] = False,
) -> None:
    """Write one page about a score file: what to keep, and what the scores find.

    The page is one file under 2.5 MB and needs no network. It shows the counts of each status, a filter of several
    conditions with sliders and the command to copy, histograms, both directions, pairs with their texts,
    near-duplicates, groups, and the correlation of each score with length. Pairs, and the counts of several conditions
    at once, are from a sample if there are many rows.

    **Examples**

    `main-align report scores.parquet -o report.html`

    `main-align report scores.parquet -o report.html --group-by source`

    `main-align report scores.parquet -o report.html --no-text`
    """
    from ..reporting.report import write_report

    write_report(scores, out, input=source, group_by=group_by, text=not no_text)
    typer.echo(f"report: {out}")

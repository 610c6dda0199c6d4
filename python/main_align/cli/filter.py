"""filter: the command `main-align filter`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..data.write import OUTPUT_ENDINGS
from ..errors import UserError
from ..filtering.limits import RECOMMENDED, Limit
from .common import log_reasons
from .plots import PLOT_ENDINGS

# Optional[...] below, not X | None: typer evaluates these annotations on every supported Python.
# ruff: noqa: UP045


def filter(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="Score file written by main-align score.")],
    out: Annotated[Path, typer.Option("-o", "--output", help=f"File for the kept rows: {OUTPUT_ENDINGS}.")],
    by: Annotated[
        Optional[str],
        typer.Option(
            help="Numeric column, or forward_nll (nll_y_given_x), or reverse_nll (nll_x_given_y). Default: mutual."
        ),
    ] = None,
    keep: Annotated[Optional[float], typer.Option(help="Fraction of the scored rows to keep, 0 to 1.")] = None,
    top: Annotated[Optional[int], typer.Option(help="Number of rows to keep.")] = None,
    minimum: Annotated[
        Optional[list[str]],
        typer.Option(
            "--min",
            metavar="[COLUMN=]VALUE",
            help="Lowest value of --by, or of COLUMN, to keep, in the column's unit. Can be repeated.",
        ),
    ] = None,
    maximum: Annotated[
        Optional[list[str]],
        typer.Option(
            "--max",
            metavar="[COLUMN=]VALUE",
            help="Highest value of --by, or of COLUMN, to keep, in the column's unit. Can be repeated.",
        ),
    ] = None,
    recommended: Annotated[
        bool,
        typer.Option("--recommended", help=f"Keep rows with {' and '.join(map(str, RECOMMENDED))}; set for smollm2."),
    ] = False,
    lower_is_better: Annotated[
        Optional[bool],
        typer.Option(
            "--lower-is-better/--higher-is-better",
            help="Better direction of the column. Default: the direction of the score.",
        ),
    ] = None,
    source: Annotated[
        Optional[str],
        typer.Option("--input", help="The scored data set. Default: the path in the manifest."),
    ] = None,
    scores_only: Annotated[
        bool, typer.Option("--scores-only", help="Write rows of the score file instead of rows of the input.")
    ] = False,
    plot: Annotated[
        Optional[Path], typer.Option(help=f"Plot histograms with the threshold to this file: {PLOT_ENDINGS}.")
    ] = None,
) -> None:
    """Keep the best rows of a scored data set, with their own fields and their scores.

    Use --keep or --top to keep the best rows, --min and --max to keep a range of values, or both to keep the best
    rows of the range. --min and --max can name other columns; a kept row meets all conditions, and the summary says
    how many rows fail each. Every score has a better direction, which is printed with the result. To rank rows by a
    column that is not a score, give --lower-is-better or --higher-is-better. Rows without a score are dropped. Of two
    equal rows, the earlier ranks higher. Rows stay in input order. A score column is renamed to main_NAME if the input
    already has a field NAME, and to main_main_NAME if it has both.

    **Examples**

    `main-align filter scores.parquet -o best.jsonl --keep 0.5`

    `main-align filter scores.parquet -o best.jsonl --by forward_nll --max 2.5`

    `main-align filter scores.parquet -o clean.jsonl --recommended --max copy_overlap=0.3`

    `main-align filter scores.parquet -o hard.jsonl --by ifd --min 0.8 --max 1`

    `main-align filter scores.parquet -o top.parquet --by semantic --top 10000 --plot kept.png`
    """
    from rich.console import Console

    from ..filtering.filter import filter_scores
    from ..scoring.columns import PANELS
    from .plots import check_plot, plot_scores
    from .progress_bar import ProgressBar
    from .summary import filter_summary

    if plot:
        check_plot(plot)
    lowest, low = _limits("min", minimum or [])
    highest, high = _limits("max", maximum or [])
    _refuse_unused(by, lower_is_better, ranks=(keep, top, lowest, highest), named=bool(low or high or recommended))
    if scores_only and source:
        raise UserError("--input has no effect with --scores-only, which reads no input; leave one of them out")
    column = by or "mutual"
    result = filter_scores(
        scores,
        out,
        by=column,
        keep=keep,
        top=top,
        min=lowest,
        max=highest,
        lower_is_better=lower_is_better,
        limits=[*low, *high],
        recommended=recommended,
        input=source,
        scores_only=scores_only,
    )
    log = ProgressBar().log
    log_reasons(log, result.table.counts, result.table.reasons)
    console = Console()
    console.print(filter_summary(result), "")
    console.print(f"kept rows: {out}", highlight=False, markup=False, soft_wrap=True)
    if not result.kept.any():
        log(f"no row was kept, so {out} has none; relax the conditions")
    if plot:
        threshold = (result.by, result.threshold) if result.by and result.threshold is not None else None
        by_column = f" by {result.by}" if result.by else ""
        title = f"{scores.name}, {int(result.kept.sum()):,} rows kept{by_column}"
        plot_scores(plot, result.table.columns, panels=PANELS, title=title, threshold=threshold, aligned=result.aligned)
        console.print(f"histograms: {plot}", highlight=False, markup=False, soft_wrap=True)


def _refuse_unused(by: str | None, lower_is_better: bool | None, *, ranks: tuple[Any, ...], named: bool) -> None:
    """Raise UserError if an option says how to rank, but every condition names its own column."""
    if not named or any(value is not None for value in ranks):
        return
    for option, is_set in ((f"--by {by}", by is not None), ("the better direction", lower_is_better is not None)):
        if is_set:
            raise UserError(
                f"{option} has no effect, because every condition names its column; "
                "add --keep, --top, --min VALUE or --max VALUE, or leave it out"
            )


def _limits(bound: str, values: list[str]) -> tuple[float | None, list[Limit]]:
    """Return the limit of --by, and the limits that name a column, of the option --min or --max."""
    own: list[float] = []
    limits = []
    for value in values:
        column, equals, number = value.rpartition("=")
        if equals and not column.strip():
            raise UserError(f"--{bound} {value}: no column before =; give VALUE or COLUMN=VALUE")
        try:
            limit = float(number)
        except ValueError:
            raise UserError(f"--{bound} {value}: {number!r} is not a number; give VALUE or COLUMN=VALUE") from None
        if column:
            limits.append(Limit(column.strip(), **{bound: limit}))
        else:
            own.append(limit)
    if len(own) > 1:
        raise UserError(f"--{bound} is given twice for --by; name the column: --{bound} COLUMN=VALUE")
    return (own[0] if own else None), limits

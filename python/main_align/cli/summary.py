"""status_table, score_summary, filter_summary, rounds_table: the summaries that commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..data.pairs import STATUSES
from ..scoring.columns import SCORES

if TYPE_CHECKING:
    from ..filtering.filter import FilterResult

Floats = NDArray[np.float64]

BLOCKS = " ▁▂▃▄▅▆▇█"
BAR_WIDTH = 40


def status_table(counts: Mapping[str, int]) -> RenderableType:
    """Return a table with the number of rows of each status."""
    table = Table(title="rows", title_justify="left", box=None, pad_edge=False)
    table.add_column("status")
    table.add_column("rows", justify="right")
    table.add_column("meaning")
    for status in (name for name in STATUSES if counts.get(name)):
        table.add_row(status, f"{counts[status]:,}", STATUSES[status])
    return table


def score_summary(columns: Mapping[str, Floats]) -> RenderableType:
    """Return a table with quantiles and a small histogram of each score, and a larger histogram of `mutual`."""
    table = Table(title="scores", title_justify="left", box=None, pad_edge=False)
    for name in ("score", "p10", "median", "p90"):
        table.add_column(name, justify="left" if name == "score" else "right")
    table.add_column("lowest ... highest")
    for name in SCORES:
        values = _finite(columns.get(name))
        if len(values):
            table.add_row(name, *_quantiles(values), _spark(values))
    parts: list[RenderableType] = [table]
    if len(mutual := _finite(columns.get("mutual"))):
        parts += [Text(), histogram(mutual, "mutual, nats per sqrt(token)")]
    return Group(*parts)


def rounds_table(rounds: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> RenderableType:
    """Return a table of the losses of both directions after each round of MAIN's loop. Round 0 is the warm-up."""
    table = Table(title="rounds", title_justify="left", box=None, pad_edge=False)
    for name in ("round", "direction", "synthetic pairs", "α", "loss", "nats/token", "on"):
        table.add_column(name, justify="left" if name in ("direction", "on") else "right")
    for number, directions in rounds.items():
        for direction, entry in directions.items():
            numbers = (entry["synthetic_weight"], entry["loss"], entry["nll"])
            cells = ("-" if value is None else f"{value:.3f}" for value in numbers)
            table.add_row(number, direction, f"{entry['synthetic_pairs']:,}", *cells, entry["nll_of"].replace("_", " "))
    return table


def histogram(values: Floats, title: str, bins: int = 12) -> RenderableType:
    """Return a histogram with horizontal bars.

    Args:
        values: float64[N], finite, N >= 1.
        title: the title.
        bins: number of intervals. Default: 12.
    """
    counts, edges = np.histogram(values, bins=bins)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = "█" * round(BAR_WIDTH * count / counts.max())
        # A bin that is not empty has a visible bar.
        table.add_row(f"{low:8.3f} to {high:8.3f}", f"{count:,}", bar or ("▏" if count else ""))
    table.columns[1].justify = "right"
    return table


def filter_summary(result: FilterResult) -> RenderableType:
    """Return the counts of kept and dropped rows, and the quantiles of each score in both groups."""
    kept = int(result.kept.sum())
    unscored = sum(result.unscored.values())
    order = ""
    if result.lower_is_better is not None:
        order = "lower is better" if result.lower_is_better else "higher is better"
        if result.threshold is not None:
            order += f", kept if {'<=' if result.lower_is_better else '>='} {result.threshold:.4g}"
        order = f" ({order})"
    lines = [Text(f"by {result.by}{order}")] if result.by else []
    lines.append(Text(f"kept {kept:,} of {result.table.rows:,} rows"))
    if unscored:
        each = ", ".join(f"{name} {count:,}" for name, count in result.unscored.items())
        lines.append(Text(f"dropped because they have no score: {unscored:,} ({each})"))
    lines += [Text(f"dropped because not {limit}: {count:,}") for limit, count in result.failed.items()]
    if result.aligned is not None:
        lines.append(Text(_aligned_line(result.aligned, result.kept)))
    return Group(*lines, Text(), _kept_and_dropped(result))


def _aligned_line(aligned: Floats, kept: NDArray[np.bool_]) -> str:
    parts = []
    for value, name in ((1.0, "aligned"), (0.0, "not aligned")):
        labelled = aligned == value
        parts.append(f"{int((labelled & kept).sum()):,} of {int(labelled.sum()):,} rows marked {name}")
    return f"the input's own field 'aligned': kept {' and '.join(parts)}"


def _kept_and_dropped(result: FilterResult) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    table.add_column("score")
    for group in ("kept", "dropped"):
        for quantile in ("p10", "median", "p90"):
            table.add_column(f"{group}\n{quantile}", justify="right")
    names = dict.fromkeys((*([result.by] if result.by else []), *SCORES))
    for name in (name for name in names if name in result.table.columns):
        values = result.table.columns[name]
        cells = [_quantiles(_finite(values[group])) for group in (result.kept, ~result.kept)]
        table.add_row(name, *cells[0], *cells[1], style="bold" if name == result.by else "")
    return table


def _finite(values: Floats | None) -> Floats:
    return np.zeros(0) if values is None else values[np.isfinite(values)]


def _quantiles(values: Floats) -> list[str]:
    """Return the 10 %, 50 % and 90 % quantiles with four digits each, or dashes if there are no values."""
    if not len(values):
        return ["-"] * 3
    return [f"{value:.4g}" for value in np.quantile(values, (0.1, 0.5, 0.9))]


def _spark(values: Floats, bins: int = 24) -> str:
    counts, _ = np.histogram(values, bins=bins)
    steps = np.ceil(counts / counts.max() * (len(BLOCKS) - 1)).astype(int)
    return "".join(BLOCKS[step] for step in steps)

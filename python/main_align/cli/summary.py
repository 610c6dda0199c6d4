"""What the terminal shows at the end: counts, quantiles and histograms of scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..data.pairs import STATUSES
from ..scoring.columns import SCORES, lower_is_better

if TYPE_CHECKING:
    from ..filtering.filter import Filtered

Floats = NDArray[np.float64]

BLOCKS = " ▁▂▃▄▅▆▇█"
BAR_WIDTH = 40


def status_table(counts: Mapping[str, int]) -> RenderableType:
    """How many rows ended with each status."""
    table = Table(title="rows", title_justify="left", box=None, pad_edge=False)
    table.add_column("status")
    table.add_column("rows", justify="right")
    table.add_column("meaning")
    for status in (name for name in STATUSES if counts.get(name)):
        table.add_row(status, f"{counts[status]:,}", STATUSES[status])
    return table


def score_summary(columns: Mapping[str, Floats]) -> RenderableType:
    """A histogram of `mutual`, and quantiles with a small histogram of every other score."""
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
    """How both directions of MAIN's loop did after each round (0: warm-up)."""
    table = Table(title="rounds", title_justify="left", box=None, pad_edge=False)
    for name in ("round", "direction", "synthetic", "alpha", "loss", "nats/token", "of"):
        table.add_column(name, justify="left" if name in ("direction", "of") else "right")
    for number, directions in rounds.items():
        for direction, made in directions.items():
            numbers = (made["alpha"], made["loss"], made["nll"])
            cells = ("-" if value is None else f"{value:.3f}" for value in numbers)
            table.add_row(number, direction, f"{made['synthetic']:,}", *cells, made["nll_of"])
    return table


def histogram(values: Floats, title: str, bins: int = 12) -> RenderableType:
    """Horizontal bars: rows per interval of the score. values: float64[N], finite, N >= 1."""
    counts, edges = np.histogram(values, bins=bins)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = "█" * round(BAR_WIDTH * count / counts.max())
        # a bin that holds something always shows something
        table.add_row(f"{low:8.3f} to {high:8.3f}", f"{count:,}", bar or ("▏" if count else ""))
    table.columns[1].justify = "right"
    return table


def filter_summary(done: Filtered) -> RenderableType:
    """Counts of kept and dropped rows, and the spread of each score among both."""
    kept = int(done.kept.sum())
    unscored = sum(done.unscored.values())
    low = lower_is_better(done.by)
    direction = "lower is better" if low else "higher is better"
    limit = "" if done.threshold is None else f", kept where {'<=' if low else '>='} {done.threshold:.4g}"
    lines = [Text(f"by {done.by} ({direction}{limit})")]
    lines.append(Text(f"kept {kept:,} of {done.table.rows:,} rows"))
    if unscored:
        each = ", ".join(f"{name} {count:,}" for name, count in done.unscored.items())
        lines.append(Text(f"never kept, for want of a score: {unscored:,} ({each})"))
    if done.aligned is not None:
        lines.append(Text(_aligned_line(done.aligned, done.kept)))
    return Group(*lines, Text(), _kept_and_dropped(done))


def _aligned_line(aligned: Floats, kept: NDArray[np.bool_]) -> str:
    parts = []
    for value, name in ((1.0, "aligned"), (0.0, "not aligned")):
        mine = aligned == value
        parts.append(f"{int((mine & kept).sum()):,} of {int(mine.sum()):,} rows marked {name}")
    return f"the input's own field 'aligned': kept {' and '.join(parts)}"


def _kept_and_dropped(done: Filtered) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    table.add_column("score")
    for group in ("kept", "dropped"):
        for quantile in ("p10", "median", "p90"):
            table.add_column(f"{group}\n{quantile}", justify="right")
    names = dict.fromkeys((done.by, *SCORES))
    for name in (name for name in names if name in done.table.columns):
        values = done.table.columns[name]
        cells = [_quantiles(_finite(values[mine])) for mine in (done.kept, ~done.kept)]
        table.add_row(name, *cells[0], *cells[1], style="bold" if name == done.by else "")
    return table


def _finite(values: Floats | None) -> Floats:
    return np.zeros(0) if values is None else values[np.isfinite(values)]


def _quantiles(values: Floats) -> list[str]:
    """p10, median, p90, each with four digits; dashes where there is no value."""
    if not len(values):
        return ["-"] * 3
    return [f"{value:.4g}" for value in np.quantile(values, (0.1, 0.5, 0.9))]


def _spark(values: Floats, bins: int = 24) -> str:
    counts, _ = np.histogram(values, bins=bins)
    steps = np.ceil(counts / counts.max() * (len(BLOCKS) - 1)).astype(int)
    return "".join(BLOCKS[step] for step in steps)

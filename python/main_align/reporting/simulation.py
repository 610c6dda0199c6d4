"""simulate, Grouping: how many rows `main-align filter` keeps at every position of the page's sliders.

Rows are counted over the whole column with the ranking of filtering/rules.py, so the page only adds numbers. A share
is a position of SHARES. Limits are round numbers; a row lies either on a limit or between two of them, which is its
cell: 2k between the limits k-1 and k, and 2k+1 on the limit k. So both ends of a range are counted as the filter does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..filtering.rules import best_first, kept_count

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SHARES = tuple(percent / 100 for percent in range(1, 101))
LIMITS = 60  # about this many limits are offered for a score
EXTREMES = 10


@dataclass(frozen=True, slots=True)
class Grouping:
    """A partition of all rows.

    Args:
        title: the heading.
        labels: the name of each of G groups.
        codes: int64[N], the group of each row.
    """

    title: str
    labels: list[str]
    codes: Integers

    @property
    def sizes(self) -> list[int]:
        """The number of rows of each group."""
        return self.count(self.codes)

    def count(self, codes: Integers) -> list[int]:
        """Count the rows of each group among `codes`."""
        counts: list[int] = np.bincount(codes, minlength=len(self.labels)).tolist()
        return counts


@dataclass(frozen=True, slots=True)
class Simulation:
    """The filter's counts for one score.

    Args:
        cuts: the worst value that each share keeps.
        limits: the limits on offer, ascending.
        share_of: int64[N], the first position of SHARES that keeps the row; -1 for a row without a score.
        cell_of: int64[N], the row's cell among the limits; -1 for a row without a score.
        shares: for each grouping, the rows of each position and group, position by position: rows that a share keeps
            and the share before it does not.
        cells: for each grouping, the rows of each cell and group, cell by cell.
        extremes: the EXTREMES best and the EXTREMES worst rows.
    """

    cuts: list[float]
    limits: list[float]
    share_of: Integers
    cell_of: Integers
    shares: list[list[int]]
    cells: list[list[int]]
    extremes: Integers


def simulate(values: Floats, lower_is_better: bool, groupings: list[Grouping]) -> Simulation:
    """Count the rows that every position of the sliders keeps.

    Args:
        values: float64[N], NaN for a row without a score; at least one row has one.
        lower_is_better: the score's better direction.
        groupings: the partitions to count by.
    """
    rows = np.flatnonzero(~np.isnan(values))
    ranked = rows[best_first(values[rows], lower_is_better)]
    kept = [kept_count(share, len(rows)) for share in SHARES]
    share_of = np.full(len(values), -1)
    share_of[ranked] = np.searchsorted(kept, np.arange(len(rows)), side="right")
    limits = round_limits(values[np.isfinite(values)])
    cell_of = np.full(len(values), -1)
    cell_of[rows] = sum(np.searchsorted(limits, values[rows], side=side) for side in ("left", "right"))
    return Simulation(
        cuts=[float(values[ranked[count - 1]]) for count in kept],
        limits=limits,
        share_of=share_of,
        cell_of=cell_of,
        shares=[_table(share_of, len(SHARES), grouping) for grouping in groupings],
        cells=[_table(cell_of, 2 * len(limits) + 1, grouping) for grouping in groupings],
        extremes=np.union1d(ranked[:EXTREMES], ranked[-EXTREMES:]),
    )


def _table(position: Integers, positions: int, grouping: Grouping) -> list[int]:
    scored, groups = position >= 0, len(grouping.labels)
    flat = position[scored] * groups + grouping.codes[scored]
    counts: list[int] = np.bincount(flat, minlength=positions * groups).tolist()
    return counts


def round_limits(values: Floats) -> list[float]:
    """Return evenly spaced round numbers over the central 99 % of the values.

    They are the floats that their shortest decimals denote, so a limit copied from the page is the limit counted.

    Args:
        values: float64[n], finite.
    """
    if not len(values):
        return []
    low, high = np.quantile(values, (0.005, 0.995))
    if not low < high:
        return [float(low)]
    raw = (high - low) / LIMITS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    multiples = range(math.floor(low / step), math.ceil(high / step) + 1)
    return sorted({float(f"{multiple * step:.{digits}f}") for multiple in multiples})

"""Rule, select, best_first, kept_count: the rows that a filter keeps, by the values of one column."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..scoring import columns
from .limits import Limit


@dataclass(frozen=True, slots=True)
class Rule:
    """A range of values to keep, and the number of best rows to keep within this range.

    Args:
        keep: fraction of the rows in the range, above 0 and at most 1; excludes `top`. Default: all.
        top: number of rows in the range, at least 1. Default: all.
        min: lowest value of the range. Default: no limit.
        max: highest value of the range. Default: no limit.
    """

    keep: float | None = None
    top: int | None = None
    min: float | None = None
    max: float | None = None

    @property
    def is_ranking(self) -> bool:
        """Return True if the rule compares rows, so that it needs a better direction."""
        return self.keep is not None or self.top is not None

    def check(self) -> None:
        """Raise UserError unless a value is set and all values are in range."""
        values = (self.keep, self.top, self.min, self.max)
        if all(value is None for value in values):
            raise UserError("give one of --keep, --top, --min, --max; found none")
        if self.keep is not None and self.top is not None:
            raise UserError("give one of --keep and --top; found --keep and --top")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UserError(f"--keep {self.keep} is not a fraction; give more than 0 and at most 1")
        if self.top is not None and self.top < 1:
            raise UserError(f"--top {self.top}: keep at least one row")
        Limit("", self.min, self.max).check()


def resolve_lower_is_better(column: str, rule: Rule, lower_is_better: bool | None = None) -> bool | None:
    """Return True if lower values of a column are better, False if higher values are.

    Args:
        column: the column's name.
        rule: the filter's rule.
        lower_is_better: replaces the column's own direction. Default: none.

    Returns:
        None if the direction is unknown and the rule does not need it.

    Raises:
        UserError: the rule ranks rows by a column without a known direction.
    """
    if lower_is_better is not None:
        return lower_is_better
    if not rule.is_ranking and (column not in columns.COLUMNS or columns.COLUMNS[column].better is None):
        return None
    return columns.lower_is_better(column)


def select(
    values: NDArray[np.float64], column: str, rule: Rule, lower_is_better: bool | None = None
) -> NDArray[np.bool_]:
    """Select the rows that a rule keeps.

    `keep` is a fraction of the scored rows in the range, rounded up. The earlier of two equal rows is better.

    Args:
        values: float64[N], NaN for a row without a score, which is never selected.
        column: the name of the column.
        rule: the filter's rule.
        lower_is_better: replaces the column's own direction. Default: none.

    Returns:
        bool[N], True for the rows to keep.

    Raises:
        UserError: the rule is invalid, or it ranks rows by a column without a known direction.
    """
    rule.check()
    lower_is_better = resolve_lower_is_better(column, rule, lower_is_better)
    in_range = Limit(column, rule.min, rule.max).met(values)
    if not rule.is_ranking:
        return in_range
    rows = np.flatnonzero(in_range)
    count = min(rule.top or 0, len(rows)) if rule.keep is None else kept_count(rule.keep, len(rows))
    kept = np.zeros(len(values), dtype=bool)
    kept[rows[best_first(values[rows], bool(lower_is_better))[:count]]] = True
    return kept


def kept_count(keep: float, rows: int) -> int:
    """Return the number of rows that are a fraction `keep`, above 0, of `rows`, rounded up."""
    # 0.07 * 100 is 7.000000000000001 in floating point and means 7.
    return max(math.ceil(keep * rows - 1e-9), min(rows, 1))


def best_first(values: NDArray[np.float64], lower_is_better: bool) -> NDArray[np.int64]:
    """Rank rows by their values.

    Args:
        values: float64[N], without NaN.
        lower_is_better: the better direction.

    Returns:
        int64[N], the rows from the best to the worst; of two equal rows, the earlier comes first.
    """
    return np.argsort(values if lower_is_better else -values, kind="stable")

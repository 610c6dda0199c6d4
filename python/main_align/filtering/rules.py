"""The rows a filter keeps: one column, its limits, the best of what lies within; ties broken by input order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..scoring.columns import lower_is_better


@dataclass(frozen=True, slots=True)
class Rule:
    """The values that may be kept (`min` to `max`, both included), and the best of them (`keep`, `top`)."""

    keep: float | None = None
    top: int | None = None
    min: float | None = None
    max: float | None = None

    def check(self) -> None:
        """Raise UserError unless something is given, and all of it is in range."""
        values = (self.keep, self.top, self.min, self.max)
        if all(value is None for value in values):
            raise UserError("give one of --keep, --top, --min, --max; found none")
        if self.keep is not None and self.top is not None:
            raise UserError("give one of --keep and --top; found --keep and --top")
        if any(value is not None and math.isnan(value) for value in values):
            raise UserError("the limit is not a number")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UserError(f"--keep {self.keep} is not a share; give more than 0 and at most 1")
        if self.top is not None and self.top < 1:
            raise UserError(f"--top {self.top}: keep at least one row")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise UserError(f"--min {self.min:g} is above --max {self.max:g}, so no row can be kept")


def select(values: NDArray[np.float64], column: str, rule: Rule) -> NDArray[np.bool_]:
    """bool[N], which rows are kept. values: float64[N], NaN where a row has no score: never kept.

    `keep` counts the scored rows within the limits and rounds up. Of equal values the earlier row is better.
    """
    rule.check()
    within = ~np.isnan(values)
    if rule.min is not None:
        within &= values >= rule.min
    if rule.max is not None:
        within &= values <= rule.max
    rows = np.flatnonzero(within)
    if rule.keep is not None:
        # 0.07 * 100 is 7.000000000000001 in binary and means 7.
        count = math.ceil(rule.keep * len(rows) - 1e-9)
    elif rule.top is not None:
        count = min(rule.top, len(rows))
    else:
        return within
    best = values[rows] if lower_is_better(column) else -values[rows]
    kept = np.zeros(len(values), dtype=bool)
    kept[rows[np.argsort(best, kind="stable")[:count]]] = True
    return kept

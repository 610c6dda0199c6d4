"""Which rows a filter keeps: one column, one rule, ties broken by input order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import UserError

LOWER_IS_BETTER = frozenset(
    {
        "nll_y_given_x",
        "nll_y",
        "nll_x_given_y",
        "nll_x",
        "ifd",
        "r_ifd",
        "duality_gap",
        "copy_overlap",
    }
)
HIGHER_IS_BETTER = frozenset({"pmi_forward", "pmi_reverse", "mutual", "semantic", "structural"})
ALIASES: Mapping[str, str] = {"forward_nll": "nll_y_given_x", "reverse_nll": "nll_x_given_y"}


@dataclass(frozen=True, slots=True)
class Rule:
    """Exactly one of: a share of the scored rows, a number of rows, a lowest or highest value."""

    keep: float | None = None
    top: int | None = None
    min: float | None = None
    max: float | None = None

    def check(self, column: str) -> None:
        """Raise UserError unless one rule is given, is in range and suits the column."""
        given = {name: getattr(self, name) for name in ("keep", "top", "min", "max")}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            found = " and ".join(f"--{name}" for name in given) or "none"
            raise UserError(f"give exactly one of --keep, --top, --min, --max; found {found}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UserError(f"--keep {self.keep} is not a share; give more than 0 and at most 1")
        if self.top is not None and self.top < 1:
            raise UserError(f"--top {self.top}: keep at least one row")
        if any(math.isnan(value) for value in given.values()):
            raise UserError("the limit is not a number")
        if self.min is not None and column in LOWER_IS_BETTER:
            raise UserError(
                f"lower {column} is better, so --min would keep the worst rows; use --max {self.min:g}, --keep or --top"
            )
        if self.max is not None and column in HIGHER_IS_BETTER:
            raise UserError(
                f"higher {column} is better, so --max would keep the worst rows; "
                f"use --min {self.max:g}, --keep or --top"
            )


def lower_is_better(column: str) -> bool:
    """Whether the best rows of a column are its lowest; an unknown column ranks from the top."""
    return column in LOWER_IS_BETTER


def select(values: NDArray[np.float64], column: str, rule: Rule) -> NDArray[np.bool_]:
    """bool[N], which rows are kept. values: float64[N], NaN where a row has no score: never kept.

    `--keep` counts scored rows only and rounds up. Of equal values the earlier row is better.
    """
    rule.check(column)
    scored = ~np.isnan(values)
    if rule.min is not None:
        return scored & (values >= rule.min)
    if rule.max is not None:
        return scored & (values <= rule.max)
    rows = np.flatnonzero(scored)
    if rule.keep is not None:
        # 0.07 * 100 is 7.000000000000001 in binary and means 7.
        count = math.ceil(rule.keep * len(rows) - 1e-9)
    else:
        count = min(rule.top or 0, len(rows))
    best = values[rows] if lower_is_better(column) else -values[rows]
    kept = np.zeros(len(values), dtype=bool)
    kept[rows[np.argsort(best, kind="stable")[:count]]] = True
    return kept

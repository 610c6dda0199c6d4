"""Limit, check_together, RECOMMENDED, recommended_for: conditions on columns.

This module does not import numpy, because `main-align filter --help` shows the conditions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Limit:
    """A condition on one column. A row without a value does not meet it.

    Args:
        column: a numeric column.
        min: lowest value to keep. Default: no limit.
        max: highest value to keep. Default: no limit.
    """

    column: str
    min: float | None = None
    max: float | None = None

    def check(self) -> None:
        """Raise UserError unless the values that are set are numbers in order."""
        if any(value is not None and math.isnan(value) for value in (self.min, self.max)):
            raise UserError(f"the limit of {self.column or '--by'} is not a number; give one, or leave it out")
        if self.min is not None and self.max is not None and self.min > self.max:
            name = f"{self.column}=" if self.column else ""
            raise UserError(f"--min {name}{self.min:g} is above --max {name}{self.max:g}, so no row can be kept")

    def met(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return bool[N], True for each row that meets the condition.

        Args:
            values: float64[N] of the column, NaN for a row without a value.
        """
        is_met: NDArray[np.bool_] = values == values  # False for NaN
        if self.min is not None:
            is_met &= values >= self.min
        if self.max is not None:
            is_met &= values <= self.max
        return is_met

    def __str__(self) -> str:
        bounds = ((">=", self.min), ("<=", self.max))
        return " and ".join(f"{self.column} {sign} {value:g}" for sign, value in bounds if value is not None)


def check_together(limits: Iterable[Limit]) -> None:
    """Raise UserError if the conditions on one column exclude each other."""
    narrowest: dict[str, Limit] = {}
    for limit in limits:
        other = narrowest.get(limit.column, limit)
        lows = [value for value in (limit.min, other.min) if value is not None]
        highs = [value for value in (limit.max, other.max) if value is not None]
        narrowest[limit.column] = Limit(limit.column, max(lows, default=None), min(highs, default=None))
        narrowest[limit.column].check()


RECOMMENDED = (
    Limit("mutual_novel", min=1.1),
    Limit("nll_end", max=10.0),
    Limit("echo", max=0.9),
    Limit("refusal", max=0),
)
"""conditions for `smollm2`, chosen and measured by bench.quality (docs/quality.md)"""


def recommended_for(columns: Mapping[str, NDArray[np.float64]]) -> list[Limit]:
    """Return the conditions RECOMMENDED without those on a column that has no value.

    Args:
        columns: float64[N] of each column that RECOMMENDED names, NaN for a row without a value.
    """
    return [limit for limit in RECOMMENDED if (columns[limit.column] == columns[limit.column]).any()]

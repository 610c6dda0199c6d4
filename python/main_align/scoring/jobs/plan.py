"""JobPlan: which rows of the input form the bank, and the units of work, fixed before the model runs.

A unit is a range of rows of one file, sorted by length together. The units depend on the input and the settings alone,
never on the engine or the number of workers, so every run makes the same forward passes and the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bank import bank_candidates

BANK_UNIT = 512
"""pairs of the bank that one worker measures at a time"""


@dataclass(frozen=True)
class JobPlan:
    """The work of a job.

    Args:
        lengths: rows of each file.
        sort_window: largest number of rows of a unit.
        bank: largest number of reference pairs.
        seed: random seed for sampling them.
    """

    lengths: Sequence[int]
    sort_window: int
    bank: int
    seed: int

    @classmethod
    def of(cls, lengths: Sequence[int], sort_window: int, fingerprint: Mapping[str, Any]) -> JobPlan:
        """Return the plan of a scorer with this fingerprint."""
        return cls(lengths, sort_window, fingerprint["bank"], fingerprint["seed"])

    @property
    def rows(self) -> int:
        """Return the number of rows of all files."""
        return sum(self.lengths)

    @cached_property
    def units(self) -> list[range]:
        """Return the rows of each unit, numbered through all files."""
        units, first = [], 0
        for length in self.lengths:
            starts = range(first, first + length, self.sort_window)
            first += length
            units += [range(start, min(start + self.sort_window, first)) for start in starts]
        return units

    @cached_property
    def candidates(self) -> NDArray[np.int64]:
        """Return the rows that the bank is chosen from, in the order in which it takes them."""
        return bank_candidates(self.rows, self.bank, self.seed)

    def candidates_in(self, rows: range) -> list[int]:
        """Return the positions of the candidates in a unit."""
        start, stop = np.searchsorted(self._ascending, (rows.start, rows.stop))
        positions: list[int] = (self._ascending[start:stop] - rows.start).tolist()
        return positions

    @cached_property
    def _ascending(self) -> NDArray[np.int64]:
        return np.sort(self.candidates)

    @cached_property
    def bank_units(self) -> list[NDArray[np.int64]]:
        """Return the candidates, ascending, in units that one worker measures at a time."""
        rows = self._ascending
        size = min(BANK_UNIT, self.sort_window)
        return [rows[start : start + size] for start in range(0, len(rows), size)]

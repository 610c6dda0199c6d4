"""JointRows: the rows on which the page counts several conditions at once.

One condition is counted over every row by simulation.py. The rows that meet several conditions cannot be tabulated, so
the page holds each row's rank in every score: of all rows if there are at most JOINT, else of a random sample. A limit
is a range of ranks, and so is a share of the rows that meet the other conditions.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..filtering.limits import RECOMMENDED, recommended_for
from ..filtering.rules import best_first
from ..scoring.score_file import ScoreTable
from .simulation import Grouping, Simulation

JOINT = 6_000  # as many ranks of 16 scores take 0.26 MB of the page
NO_RANK = 65_535
SEED = 0

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class JointRows:
    """Rows that the page counts one by one.

    Args:
        rows: int64[J], ascending.
        is_whole: the rows are all rows, so that counts are exact.
    """

    rows: Integers
    is_whole: bool

    @classmethod
    def draw(cls, count: int) -> JointRows:
        """Return all of `count` rows, or JOINT random ones."""
        if count <= JOINT:
            return cls(np.arange(count), True)
        return cls(np.sort(np.random.default_rng(SEED).permutation(count)[:JOINT]), False)

    def data(self, groupings: Sequence[Grouping]) -> dict[str, Any]:
        """Return the number of rows and the group of each row in every grouping."""
        codes = [
            packed(grouping.codes[self.rows], np.uint8 if len(grouping.labels) <= 256 else np.uint16)
            for grouping in groupings
        ]
        return {"rows": len(self.rows), "is_whole": self.is_whole, "groups": codes}

    def score_data(
        self, values: Floats, lower_is_better: bool, simulation: Simulation, shown: Integers
    ) -> dict[str, Any]:
        """Return the ranks in one score.

        Args:
            values: float64[N], NaN for a row without the score.
            lower_is_better: the score's better direction.
            simulation: the counts of the score.
            shown: int64[n], the rows whose texts are shown.

        Returns:
            `ranks` of the rows, best first; `cells`, the number of these rows in each cell of `simulation`; and `of`,
            the rank that each shown row has or would have, -1 without a score.
        """
        ours = values[self.rows]
        scored = np.flatnonzero(~np.isnan(ours))
        ranked = scored[best_first(ours[scored], lower_is_better)]
        ranks = np.full(len(ours), NO_RANK)
        ranks[ranked] = np.arange(len(ranked))
        sign = 1 if lower_is_better else -1
        of = ranks[shown] if self.is_whole else np.searchsorted(sign * ours[ranked], sign * values[shown])
        cells = simulation.cell_of[self.rows]
        return {
            "ranks": packed(ranks, np.uint16),
            "cells": np.bincount(cells[cells >= 0], minlength=2 * len(simulation.limits) + 1).tolist(),
            "of": np.where(np.isnan(values[shown]), -1, of).tolist(),
        }

    def preset_data(
        self, table: ScoreTable, lengths: Sequence[int], groupings: Sequence[Grouping], shown: Integers
    ) -> dict[str, Any] | None:
        """Return the rows that `main-align filter --recommended` keeps; None if the file lacks one of its columns.

        Args:
            table: the scores.
            lengths: the number of rows of each file; a file's own columns decide which conditions count.
            groupings: the partitions to count by.
            shown: int64[n], the rows whose texts are shown.

        Returns:
            `conditions` in words; `kept`, the exact number of kept rows in each group of each grouping; `met`, whether
            each row is kept; and `of`, the same for the shown rows.
        """
        if any(limit.column not in table.columns for limit in RECOMMENDED):
            return None
        ends = np.cumsum([0, *lengths])
        met = np.ones(table.rows, dtype=bool)
        used: dict[str, None] = {}
        for start, stop in pairwise(ends.tolist()):
            columns = {limit.column: table.columns[limit.column][start:stop] for limit in RECOMMENDED}
            for limit in recommended_for(columns):
                met[start:stop] &= limit.met(columns[limit.column])
                used[str(limit)] = None
        return {
            "conditions": list(used),
            "kept": [grouping.count(grouping.codes[met]) for grouping in groupings],
            "met": packed(met[self.rows], np.uint8),
            "of": met[shown].tolist(),
        }


def packed(values: NDArray[Any], dtype: type) -> str:
    """Return the little-endian bytes of an array in base64."""
    return base64.b64encode(values.astype(np.dtype(dtype).newbyteorder("<")).tobytes()).decode()

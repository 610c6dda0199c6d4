"""MicroBatchResult, Likelihoods: what the model says about the pairs of a forward pass, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ARRAYS = ("rows", "logp", "novel", "y_end", "embed_x", "embed_y")
"""the arrays of a MicroBatchResult"""


class Likelihoods(NamedTuple):
    """The likelihoods of n pairs; NaN for a pair without scores.

    Attributes:
        logp: float64[n, 4], summed log-probabilities in nats; the columns are those of `encoding.LogpColumn`.
        novel: float64[n, 2], novel_y and novel_x of PairLikelihoods.
        y_end: float64[n], log-probability of y's end-of-turn token given x and y; NaN where the template has none.
    """

    logp: NDArray[np.float64]
    novel: NDArray[np.float64]
    y_end: NDArray[np.float64]

    @classmethod
    def empty(cls, n: int) -> Likelihoods:
        """Return those of n pairs without scores."""
        return cls(np.full((n, 4), np.nan), np.full((n, 2), np.nan), np.full(n, np.nan))


@dataclass
class MicroBatchResult:
    """Results of n pairs. A failed pair has NaN and zeros in the arrays, a status and a reason.

    Args:
        rows: int64[n], positions in the sort window.
        logp: float64[n, 4], as in Likelihoods.
        novel: float64[n, 2], as in Likelihoods.
        y_end: float64[n], as in Likelihoods.
        embed_x: float32[n, D], states of the instructions, of unit length and not centred.
        embed_y: float32[n, D], states of the responses.
        status: statuses of failed pairs by their position in the sort window.
        reason: reasons of failed pairs by their position in the sort window.
    """

    rows: NDArray[np.int64]
    logp: NDArray[np.float64]
    novel: NDArray[np.float64]
    y_end: NDArray[np.float64]
    embed_x: NDArray[np.float32]
    embed_y: NDArray[np.float32]
    status: dict[int, str] = field(default_factory=dict)
    reason: dict[int, str] = field(default_factory=dict)

    @property
    def likelihoods(self) -> Likelihoods:
        """Return the likelihoods of the n pairs."""
        return Likelihoods(self.logp, self.novel, self.y_end)

    def fail(self, index: int, status: str, reason: str) -> None:
        """Mark the pair at `index` of this result as not scored.

        Args:
            index: position in this result.
            status: a status that is not in SCORED.
            reason: one sentence that names the row.
        """
        row = int(self.rows[index])
        self.logp[index] = self.novel[index] = self.y_end[index] = np.nan
        self.embed_x[index] = self.embed_y[index] = 0
        self.status[row], self.reason[row] = status, reason


def empty_result(rows: Sequence[int], width: int) -> MicroBatchResult:
    """Return a result for `rows` without any scores.

    Args:
        rows: positions in the sort window.
        width: D, the width of an embedding.
    """
    n = len(rows)
    x, y = (np.zeros((n, width), np.float32) for _ in range(2))
    return MicroBatchResult(np.array(rows, np.int64), *Likelihoods.empty(n), x, y)


def join_results(parts: Sequence[MicroBatchResult]) -> MicroBatchResult:
    """Return one result with the rows of all parts, in their order."""
    return MicroBatchResult(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS},
        status={row: status for part in parts for row, status in part.status.items()},
        reason={row: reason for part in parts for row, reason in part.reason.items()},
    )

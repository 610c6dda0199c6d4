"""What the model said of one pack: plain arrays, ready for the journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class MicroBatchResult:
    """Results of n pairs. A pair that failed has NaN and zeros here, and a status and a reason."""

    rows: NDArray[np.int64]  # [n], positions in the window
    logp: NDArray[np.float64]  # [n, 4], nats: log p(y|x), log p(y), log p(x|y), log p(x)
    embed_x: NDArray[np.float32]  # [n, D], unit length, not centred
    embed_y: NDArray[np.float32]  # [n, D]
    status: dict[int, str] = field(default_factory=dict)  # of failures, by position in the window
    reason: dict[int, str] = field(default_factory=dict)

    def fail(self, place: int, status: str, reason: str) -> None:
        """Mark the pair at `place` of this result as not scored."""
        row = int(self.rows[place])
        self.logp[place] = np.nan
        self.embed_x[place] = self.embed_y[place] = 0
        self.status[row], self.reason[row] = status, reason

    def shifted(self, by: int) -> MicroBatchResult:
        """The same result with its rows counted from `by` places earlier."""
        return MicroBatchResult(
            self.rows + by,
            self.logp,
            self.embed_x,
            self.embed_y,
            {row + by: status for row, status in self.status.items()},
            {row + by: reason for row, reason in self.reason.items()},
        )


def empty_result(rows: Sequence[int], width: int) -> MicroBatchResult:
    """A result for `rows` in which nothing has been scored yet; `width` is D."""
    n = len(rows)
    x, y = (np.zeros((n, width), np.float32) for _ in range(2))
    return MicroBatchResult(np.array(rows, np.int64), np.full((n, 4), np.nan), x, y)


def join_results(parts: Sequence[MicroBatchResult]) -> MicroBatchResult:
    """The results of a pack that was run in parts."""
    return MicroBatchResult(
        rows=np.concatenate([part.rows for part in parts]),
        logp=np.concatenate([part.logp for part in parts]),
        embed_x=np.concatenate([part.embed_x for part in parts]),
        embed_y=np.concatenate([part.embed_y for part in parts]),
        status={row: status for part in parts for row, status in part.status.items()},
        reason={row: reason for part in parts for row, reason in part.reason.items()},
    )

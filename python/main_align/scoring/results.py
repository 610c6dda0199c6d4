"""MicroBatchResult, StoredWindow, MemoryJournal: results of the model as arrays and as records of a journal.

A sort window is stored as one record of its rows, followed by one record for each micro-batch that the model ran.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.journal import Record
from ..data.pairs import SCORED
from .bank import PairStates

if TYPE_CHECKING:
    from .batching import SortWindow


ARRAYS = ("rows", "logp", "novel", "y_end", "embed_x", "embed_y")
"""the arrays of a MicroBatchResult"""
WINDOW_ARRAYS = ("tokens_x", "tokens_y", "text_x", "text_y", "refusal")
"""the arrays of a SortWindow"""


@dataclass
class MicroBatchResult:
    """Results of n pairs. A failed pair has NaN and zeros in the arrays, a status and a reason.

    Args:
        rows: int64[n], positions in the sort window.
        logp: float64[n, 4], summed log-probabilities in nats; the columns are those of `encoding.LogpColumn`.
        novel: float64[n, 2], log-ratios over the tokens of y and of x that are not copied, as in PairLikelihoods.
        y_end: float64[n], log-probability of y's end-of-turn token given x and y; NaN where the template has none.
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
    logp, novel, y_end = (np.full(shape, np.nan) for shape in ((n, 4), (n, 2), n))
    return MicroBatchResult(np.array(rows, np.int64), logp, novel, y_end, x, y)


def join_results(parts: Sequence[MicroBatchResult]) -> MicroBatchResult:
    """Return the results of a micro-batch that was run in parts."""
    return MicroBatchResult(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS},
        status={row: status for part in parts for row, status in part.status.items()},
        reason={row: reason for part in parts for row, reason in part.reason.items()},
    )


class RecordLog(Protocol):
    """Interface of a journal: `data.journal.Journal` on disk, or MemoryJournal."""

    def append(self, header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None: ...

    def headers(self) -> Iterator[dict[str, Any]]: ...

    def records(self) -> Iterator[Record]: ...


class MemoryJournal:
    """Journal of pairs that are scored in memory."""

    def __init__(self) -> None:
        self._records: list[Record] = []

    def append(self, header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
        """Add a record."""
        self._records.append((dict(header), dict(tensors)))

    def headers(self) -> Iterator[dict[str, Any]]:
        """Yield the headers of all records in order."""
        return (header for header, _ in self._records)

    def records(self) -> Iterator[Record]:
        """Yield all records in order, each a header and its arrays."""
        return iter(self._records)


def window_record(index: int, window: SortWindow) -> Record:
    """Return the record of a prepared window: its rows without their texts and tokens."""
    header = {
        "kind": "window",
        "window": index,
        "micro_batches": len(window.micro_batches),
        "ids": [pair.id for pair in window.pairs],
        "status": list(window.status),
        "reason": list(window.reason),
    }
    return header, {name: getattr(window, name) for name in WINDOW_ARRAYS} | window.token_scores


def result_record(index: int, result: MicroBatchResult) -> Record:
    """Return the record of one micro-batch of window `index`."""
    header = {
        "kind": "micro_batch",
        "window": index,
        # JSON has no integer keys
        "status": list(result.status.items()),
        "reason": list(result.reason.items()),
    }
    return header, {name: getattr(result, name) for name in ARRAYS}


@dataclass(slots=True)
class StoredWindow:
    """A sort window of n rows, s of them scored, read from a journal.

    Args:
        ids: ids of the rows.
        status: their statuses.
        reason: their reasons, "" if there is none.
        arrays: arrays of n entries by name: those of WINDOW_ARRAYS and the scores that follow from token ids.
        logp: float64[n, 4], NaN for rows without scores.
        novel: float64[n, 2], as in MicroBatchResult.
        y_end: float64[n], as in MicroBatchResult.
        scored: int64[s], positions of the scored rows, ascending.
        embed_x: float32[s, D], embeddings of the scored rows' instructions.
        embed_y: float32[s, D], embeddings of their responses.
    """

    ids: list[str]
    status: list[str]
    reason: list[str]
    arrays: dict[str, NDArray[Any]]
    logp: NDArray[np.float64]
    novel: NDArray[np.float64]
    y_end: NDArray[np.float64]
    scored: NDArray[np.int64]
    embed_x: NDArray[np.float32]
    embed_y: NDArray[np.float32]

    def states(self) -> PairStates:
        """Return the embeddings and texts of the scored rows."""
        text_x, text_y = (self.arrays[name][self.scored] for name in ("text_x", "text_y"))
        return PairStates(self.embed_x, self.embed_y, text_x, text_y)


def stored_windows(journal: RecordLog) -> Iterator[StoredWindow]:
    """Yield the windows of a complete journal in order."""
    group: list[Record] = []
    for record in journal.records():
        if record[0]["kind"] == "window" and group:
            yield _join_records(group)
            group = []
        group.append(record)
    if group:
        yield _join_records(group)


def _join_records(group: list[Record]) -> StoredWindow:
    (header, arrays), *results = group
    status, reason = list(header["status"]), list(header["reason"])
    for result, _ in results:
        for row, value in result["status"]:
            status[row] = value
        for row, value in result["reason"]:
            reason[row] = value
    n = len(status)
    logp, novel, y_end = (np.full(shape, np.nan) for shape in ((n, 4), (n, 2), n))
    scored = np.flatnonzero([value in SCORED for value in status])
    index = np.full(n, -1)  # of a row among the scored ones
    index[scored] = np.arange(len(scored))
    width = results[0][1]["embed_x"].shape[1] if results else 0
    embed_x, embed_y = (np.zeros((len(scored), width), np.float32) for _ in range(2))
    for _, result in results:
        good = index[result["rows"]] >= 0
        at = index[result["rows"][good]]
        for name, array in (("logp", logp), ("novel", novel), ("y_end", y_end)):
            array[result["rows"][good]] = result[name][good]
        embed_x[at], embed_y[at] = result["embed_x"][good], result["embed_y"][good]
    return StoredWindow(header["ids"], status, reason, arrays, logp, novel, y_end, scored, embed_x, embed_y)


def count_scored(journal: RecordLog) -> int:
    """Return the number of scored rows of a complete journal, from its headers alone."""
    total = 0
    for header in journal.headers():
        if header["kind"] == "window":
            total += sum(status in SCORED for status in header["status"])
        else:  # a micro-batch lists its failures only
            total -= len(header["status"])
    return total

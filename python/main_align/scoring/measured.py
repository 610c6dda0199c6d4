"""Measured, measure_windows: what one model says about each pair by itself; a bank turns it into the rows of scores."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.pairs import SCORED, Pair
from .bank import Bank, BankScores, PairStates
from .batching import SortWindow
from .prefetch import Prefetch
from .results import Likelihoods, MicroBatchResult, join_results
from .rows import score_rows
from .runner import Runner


@dataclass
class Measured:
    """Statuses, likelihoods and embeddings of n pairs. They do not depend on the other pairs.

    Args:
        ids: ids of the pairs.
        status: a key of STATUSES for each pair.
        reason: one sentence on each status, "" if there is none.
        columns: an array of n entries for each count of tokens and each score that follows from the token ids.
        likelihoods: the likelihoods, NaN for a pair without scores.
        embed_x: float32[n, D], mean states of the instructions, of unit length; 0 for a pair without scores.
        embed_y: float32[n, D], mean states of the responses.
        text_x: int64[n], equal for instructions with equal token ids.
        text_y: int64[n], equal for responses with equal token ids.
        fingerprint: `Scorer.fingerprint` of the scorer.
    """

    ids: list[str]
    status: list[str]
    reason: list[str]
    columns: dict[str, NDArray[Any]]
    likelihoods: Likelihoods
    embed_x: NDArray[np.float32]
    embed_y: NDArray[np.float32]
    text_x: NDArray[np.int64]
    text_y: NDArray[np.int64]
    fingerprint: dict[str, Any]

    def __len__(self) -> int:
        """Return n."""
        return len(self.ids)

    @property
    def is_scored(self) -> NDArray[np.bool_]:
        """Return bool[n], True for the pairs that have scores."""
        return np.array([status in SCORED for status in self.status], bool)

    def states(self, pairs: NDArray[Any]) -> PairStates:
        """Return the embeddings and texts of some pairs.

        Args:
            pairs: int64[k], their positions, or bool[n].
        """
        return PairStates(*(array[pairs] for array in (self.embed_x, self.embed_y, self.text_x, self.text_y)))

    def rows(self, bank: Bank | None) -> list[dict[str, Any]]:
        """Return the rows of scores, one dict per pair with exactly the columns of COLUMNS.

        `semantic` and `structural` compare each pair with the bank alone, so they are the same however the pairs are
        divided among calls.

        Args:
            bank: a bank of the same scorer. None leaves these two empty.

        Raises:
            UserError: the bank was made by another scorer.
        """
        scored, scores = self.is_scored, BankScores.empty(len(self))
        if bank is not None:
            bank.check(self.fingerprint)
            for values, found in zip(scores, bank.score(self.states(scored)), strict=True):
                values[scored] = found
        return score_rows(self.ids, self.status, self.reason, self.columns, self.likelihoods, scores)


def measure_windows(
    runner: Runner, pairs: Iterable[Pair], sort_window: int, on_progress: Callable[[int, int], None] | None = None
) -> Measured:
    """Measure pairs, one sort window at a time.

    Args:
        runner: prepares the windows and runs their micro-batches.
        pairs: the pairs in order.
        sort_window: pairs that are sorted by length together.
        on_progress: called after each forward pass with the number of its pairs and of its tokens.
    """
    iterator = iter(pairs)

    def prepared() -> Generator[None, None, SortWindow]:
        return (yield from runner.prepare_in_steps(list(islice(iterator, sort_window))))

    parts: list[Measured] = []
    following = Prefetch(prepared())
    while (window := following.result()).pairs or not parts:  # no pairs are one window too
        following = Prefetch(prepared())
        results = []
        for batch, result in zip(
            window.micro_batches, runner.run(window, window.micro_batches, following.step), strict=True
        ):
            results.append(result)
            if on_progress:
                on_progress(len(batch.rows), batch.tokens)
        parts.append(_measured(window, results, runner))
    return _joined(parts)


def _measured(window: SortWindow, results: list[MicroBatchResult], runner: Runner) -> Measured:
    n, status, reason = len(window.pairs), list(window.status), list(window.reason)
    likelihoods = Likelihoods.empty(n)
    embed_x, embed_y = (np.zeros((n, runner.width), np.float32) for _ in range(2))
    if results:
        result = join_results(results)
        for row, value in result.status.items():
            status[row], reason[row] = value, result.reason[row]
        embed_x[result.rows], embed_y[result.rows] = result.embed_x, result.embed_y
        for values, found in zip(likelihoods, result.likelihoods, strict=True):
            values[result.rows] = found
    ids = [pair.id for pair in window.pairs]
    states = embed_x, embed_y, window.text_x, window.text_y
    return Measured(ids, status, reason, window.columns(), likelihoods, *states, runner.fingerprint)


def _joined(parts: list[Measured]) -> Measured:
    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    return Measured(
        ids=[label for part in parts for label in part.ids],
        status=[status for part in parts for status in part.status],
        reason=[reason for part in parts for reason in part.reason],
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
        likelihoods=Likelihoods(*map(np.concatenate, zip(*(part.likelihoods for part in parts), strict=True))),
        embed_x=joined("embed_x"),
        embed_y=joined("embed_y"),
        text_x=joined("text_x"),
        text_y=joined("text_y"),
        fingerprint=parts[0].fingerprint,
    )

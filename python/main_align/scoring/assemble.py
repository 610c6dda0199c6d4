"""assemble_rows: the rows of a score file from a complete journal, for files and for pairs in memory alike.

The journal is read three times, one sort window at a time: to count the scored pairs (headers only), to collect the
bank's embeddings, and to score each window against the bank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bank import Bank, BankScores, PairStates
from .columns import COLUMNS, COUNTS, TOKEN_SCORES, likelihood_scores
from .flags import flags_of
from .results import RecordLog, StoredWindow, count_scored, stored_windows
from .runner import Runner


def assemble_rows(journal: RecordLog, runner: Runner) -> Iterator[dict[str, Any]]:
    """Yield the rows of a complete journal in input order, with exactly the columns of COLUMNS.

    Args:
        journal: all windows of the input and the results of all their micro-batches.
        runner: the scorer that ran them; it defines the bank.
    """
    chosen = Bank.choose(count_scored(journal), runner.bank, runner.seed)
    bank = _collect(journal, runner, chosen) if len(chosen) else None
    before = 0
    for window in stored_windows(journal):
        scores = {name: window.arrays[name] for name in TOKEN_SCORES}
        scores |= {name: np.full(len(window.ids), np.nan) for name in BankScores._fields}
        if bank is not None and len(window.scored):
            for name, values in bank.score(window.states())._asdict().items():
                scores[name][window.scored] = values
        before += len(window.scored)
        yield from score_rows(window, scores)


def score_rows(window: StoredWindow, scores: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Return the rows of one window, with exactly the columns of COLUMNS.

    Args:
        window: n rows.
        scores: float64[n] for each score that does not follow from the likelihoods.

    Returns:
        One dict per row. All numbers of a row without finite likelihoods are None, as is any number that is not finite.
    """
    counts = {name: window.arrays[name] for name in COUNTS}
    numbers = likelihood_scores(
        window.logp, counts["tokens_x"], counts["tokens_y"], novel=window.novel, y_end=window.y_end
    ) | dict(scores)
    scored = [bool(row.all()) for row in np.isfinite(window.logp)]
    columns: dict[str, list[Any]] = {
        name: [float(value) if ok and np.isfinite(value) else None for value, ok in zip(values, scored, strict=True)]
        for name, values in numbers.items()
    }
    for name, values in counts.items():
        columns[name] = [int(value) if ok else None for value, ok in zip(values, scored, strict=True)]
    columns |= {"id": window.ids, "flags": [None] * len(scored), "status": window.status, "reason": window.reason}
    in_order = zip(*(columns[name] for name in COLUMNS), strict=True)
    rows: list[dict[str, Any]] = [dict(zip(COLUMNS, row, strict=True)) for row in in_order]
    for row, ok in zip(rows, scored, strict=True):
        if ok:
            row["flags"] = flags_of(row)
    return rows


def _collect(journal: RecordLog, runner: Runner, chosen: NDArray[np.int64]) -> Bank:
    """Return the bank of the scored pairs at the positions `chosen`, int64, ascending."""
    before, parts = 0, []
    for window in stored_windows(journal):
        count = len(window.scored)
        start, stop = np.searchsorted(chosen, (before, before + count))
        if start < stop:
            parts.append([array[chosen[start:stop] - before] for array in window.states()])
        before += count
    return runner.make_bank(PairStates(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))))

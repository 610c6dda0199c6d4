"""score_rows: the rows of a score file from what is known of each pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bank import BankScores
from .columns import COLUMNS, COUNTS, likelihood_scores
from .flags import flags_of
from .results import Likelihoods


def score_rows(
    ids: Sequence[str],
    status: Sequence[str],
    reason: Sequence[str],
    columns: Mapping[str, NDArray[Any]],
    likelihoods: Likelihoods,
    bank_scores: BankScores,
) -> list[dict[str, Any]]:
    """Return one dict per row, with exactly the columns of COLUMNS.

    Args:
        ids: n ids.
        status: n statuses.
        reason: n reasons, "" if there is none.
        columns: an array of n entries for each name of COUNTS and TOKEN_SCORES.
        likelihoods: those of the n rows, NaN for a row without scores.
        bank_scores: the scores against the bank, NaN for a row without any.

    Returns:
        The rows. All numbers of a row without finite likelihoods are None, as is any number that is not finite.
    """
    tokens = columns["tokens_x"], columns["tokens_y"]
    numbers = likelihood_scores(likelihoods.logp, *tokens, novel=likelihoods.novel, y_end=likelihoods.y_end)
    numbers |= {name: values for name, values in columns.items() if name not in COUNTS} | bank_scores._asdict()
    scored = [bool(row.all()) for row in np.isfinite(likelihoods.logp)]
    cells: dict[str, Sequence[Any]] = {
        name: [float(value) if ok and np.isfinite(value) else None for value, ok in zip(values, scored, strict=True)]
        for name, values in numbers.items()
    }
    for name in COUNTS:
        cells[name] = [int(value) if ok else None for value, ok in zip(columns[name], scored, strict=True)]
    cells |= {"id": ids, "flags": [None] * len(scored), "status": status, "reason": reason}
    in_order = zip(*(cells[name] for name in COLUMNS), strict=True)
    rows: list[dict[str, Any]] = [dict(zip(COLUMNS, row, strict=True)) for row in in_order]
    for row, ok in zip(rows, scored, strict=True):
        if ok:
            row["flags"] = flags_of(row)
    return rows

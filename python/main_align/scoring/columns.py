"""The score columns: their definitions, and how they follow from four summed log-probabilities.

Everything is float64 and in nats (natural logarithms).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COLUMNS: dict[str, str] = {
    "id": "the row's own id, or its line number where it has none",
    "nll_y_given_x": "-log p(y|x) / |y|, nats per token",
    "nll_y": "-log p(y) / |y|, nats per token",
    "nll_x_given_y": "-log p(x|y) / |x|, nats per token",
    "nll_x": "-log p(x) / |x|, nats per token",
    "tokens_x": "|x|, tokens of the instruction scored, its end-of-turn token included",
    "tokens_y": "|y|, tokens of the response scored, its end-of-turn token included",
    "pmi_forward": "nll_y - nll_y_given_x, nats per token",
    "pmi_reverse": "nll_x - nll_x_given_y, nats per token",
    "mutual": "(|y| pmi_forward + |x| pmi_reverse) / (2 sqrt(|x|+|y|)), nats per sqrt(token)",
    "ifd": "nll_y_given_x / nll_y, a ratio of mean losses (not of perplexities)",
    "r_ifd": "nll_x_given_y / nll_x, a ratio of mean losses (not of perplexities)",
    "duality_gap": "|log p(x) + log p(y|x) - log p(y) - log p(x|y)| / (|x|+|y|), nats per token",
    "copy_overlap": "share of y's token 6-grams that occur in x; null where y is under 6 tokens",
    "semantic": "log N + S_ii - (row LSE + column LSE) / 2 over a bank of N pairs, nats, <= log N",
    "structural": "-mean_j (q_i.q_j - k_i.k_j)^2 over the bank, no unit; 0 is best",
    "status": "ok or truncated where the row was scored, else why it was not",
    "reason": "one sentence on the status, naming the line; empty for ok",
}

NGRAM = 6


def copy_overlap(x: Sequence[int], y: Sequence[int], n: int = NGRAM) -> float:
    """The share of y's token n-grams that occur in x; NaN where y is shorter than n tokens."""
    if len(y) < n:
        return float("nan")
    seen = set(_ngrams(x, n))
    grams = _ngrams(y, n)
    return sum(gram in seen for gram in grams) / len(grams)


def _ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(ids[i:] for i in range(n)), strict=False))


def likelihood_scores(logp: Floats, tokens_x: NDArray[np.int64], tokens_y: NDArray[np.int64]) -> dict[str, Floats]:
    """The likelihood columns of n pairs.

    Args:
        logp: float64[n, 4], summed log-probabilities in nats: log p(y|x), log p(y), log p(x|y),
            log p(x). A row of NaN gives NaN in every column.
        tokens_x, tokens_y: int64[n], |x| and |y|.
    """
    y_given_x, y, x_given_y, x = np.asarray(logp, np.float64).reshape(-1, 4).T
    with np.errstate(divide="ignore", invalid="ignore"):
        total = (tokens_x + tokens_y).astype(np.float64)
        return {
            "nll_y_given_x": -y_given_x / tokens_y,
            "nll_y": -y / tokens_y,
            "nll_x_given_y": -x_given_y / tokens_x,
            "nll_x": -x / tokens_x,
            "pmi_forward": (y_given_x - y) / tokens_y,
            "pmi_reverse": (x_given_y - x) / tokens_x,
            "mutual": ((y_given_x - y) + (x_given_y - x)) / (2 * np.sqrt(total)),
            "ifd": y_given_x / y,
            "r_ifd": x_given_y / x,
            "duality_gap": np.abs((x + y_given_x) - (y + x_given_y)) / total,
        }


def score_rows(
    *,
    ids: Sequence[str],
    status: Sequence[str],
    reason: Sequence[str],
    tokens_x: NDArray[np.int64],
    tokens_y: NDArray[np.int64],
    copy_overlap: Floats,
    logp: Floats,
    semantic: Floats,
    structural: Floats,
) -> list[dict[str, Any]]:
    """Rows with exactly COLUMNS; every argument has n entries (`logp` is [n, 4]).

    A row whose `logp` is not finite is one that was not scored: all its numbers are None. So is
    any single number that is not finite.
    """
    numbers = likelihood_scores(logp, tokens_x, tokens_y) | {
        "copy_overlap": copy_overlap,
        "semantic": semantic,
        "structural": structural,
    }
    finite = np.isfinite(np.asarray(logp).reshape(-1, 4))
    scored = [bool(row.all()) for row in finite]
    columns: dict[str, list[Any]] = {
        name: [float(value) if ok and np.isfinite(value) else None for value, ok in zip(values, scored, strict=True)]
        for name, values in numbers.items()
    }
    for name, counts in (("tokens_x", tokens_x), ("tokens_y", tokens_y)):
        columns[name] = [int(v) if ok else None for v, ok in zip(counts, scored, strict=True)]
    columns |= {"id": list(ids), "status": list(status), "reason": list(reason)}
    in_order = zip(*(columns[name] for name in COLUMNS), strict=True)
    return [dict(zip(COLUMNS, row, strict=True)) for row in in_order]


INTEGERS = frozenset({"tokens_x", "tokens_y"})


TEXTS = frozenset({"id", "status", "reason"})


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


def lower_is_better(column: str) -> bool:
    """Whether the best rows of a column are its lowest; an unknown column ranks from the top."""
    return column in LOWER_IS_BETTER

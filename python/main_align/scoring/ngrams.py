"""copy_overlap, echo, copied, novel_sum: tokens that one side of a pair copies from the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NGRAM = 6
"""tokens of an n-gram"""
SHORTEST = 3
"""tokens of an n-gram of a short instruction"""


def copy_overlap(x: Sequence[int], y: Sequence[int], n: int = NGRAM) -> float:
    """Return the fraction of y's token n-grams that occur in x, or NaN if y has fewer than n tokens.

    Args:
        x: token ids of the instruction.
        y: token ids of the response.
        n: tokens of an n-gram. Default 6.
    """
    if len(y) < n:
        return float("nan")
    seen = set(_ngrams(x, n))
    grams = _ngrams(y, n)
    return sum(gram in seen for gram in grams) / len(grams)


def ngram_size(x: Sequence[int]) -> int:
    """Return the tokens of the n-grams that count as copied, so that a short instruction can be copied as well.

    Args:
        x: token ids of the instruction.
    """
    return max(SHORTEST, min(NGRAM, len(x)))


def echo(x: Sequence[int], y: Sequence[int]) -> float:
    """Return the fraction of x's tokens that lie in an n-gram of y, with n of `ngram_size`.

    Args:
        x: token ids of the instruction.
        y: token ids of the response.
    """
    return float(copied(x, y, ngram_size(x)).mean())


def copied(ids: Sequence[int], other: Sequence[int], n: int) -> NDArray[np.bool_]:
    """Return bool[len(ids)], True for each token that lies in an n-gram which also occurs in `other`.

    Args:
        ids: token ids of one side.
        other: token ids of the other side.
        n: tokens of an n-gram.
    """
    grams = _ngrams(ids, n)
    shared = set(_ngrams(other, n)).intersection(grams)
    mask = np.zeros(len(ids), dtype=bool)
    for start, gram in enumerate(grams if shared else ()):
        if gram in shared:
            mask[start : start + n] = True
    return mask


def novel_sum(values: NDArray[np.float64], ids: Sequence[int], other: Sequence[int], n: int) -> float:
    """Return the sum of the values of all tokens that are not copied.

    Args:
        values: float64[m], the values of the tokens of `ids`, followed by those of end-of-turn tokens.
        ids: token ids of one side.
        other: token ids of the other side.
        n: tokens of an n-gram.
    """
    mask = copied(ids, other, n)
    return float(values[: len(ids)][~mask].sum() + values[len(ids) :].sum())


def _ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(ids[i:] for i in range(n)), strict=False))

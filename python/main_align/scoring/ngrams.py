"""copy_overlap, echo, copied, novel_sums: tokens that one side of a pair copies from the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NGRAM = 6
"""tokens of an n-gram of `copy_overlap`"""
COPIED = 4
"""tokens of an n-gram that counts as copied"""
SHORTEST = 3
"""the same for an instruction of fewer than COPIED tokens"""


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
    return SHORTEST if len(x) < COPIED else COPIED


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


def novel_sums(
    ratio_y: NDArray[np.float64], ratio_x: NDArray[np.float64], y: Sequence[int], x: Sequence[int]
) -> tuple[float, float]:
    """Return the sums of both sides' log-ratios, in which a copied token counts min(1, 2 - 2 echo).

    A pair that shares a phrase keeps its evidence; one that repeats the whole instruction loses all that it copied.

    Args:
        ratio_y: float64[m], log p(y|x) - log p(y) of the tokens of y, followed by those of end-of-turn tokens.
        ratio_x: float64[k], log p(x|y) - log p(x) of the tokens of x, likewise.
        y: token ids of the response.
        x: token ids of the instruction.
    """
    n = ngram_size(x)
    in_y, in_x = copied(y, x, n), copied(x, y, n)
    lost = 1 - min(1.0, 2 - 2 * float(in_x.mean()))
    sum_y, sum_x = (
        float(r.sum() - lost * r[: len(mask)][mask].sum()) for r, mask in ((ratio_y, in_y), (ratio_x, in_x))
    )
    return sum_y, sum_x


def _ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(ids[i:] for i in range(n)), strict=False))

"""histogram, quantiles, rank_correlation: exact statistics of whole columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
BARS = 50
TAIL = 0.002  # fraction of the values at each end that the outer bars collect


def histogram(values: Floats) -> dict[str, Any]:
    """Count values in bars of equal width. The outer bars also hold the values beyond them.

    Args:
        values: float64[n], finite, n >= 1.

    Returns:
        `low` and `high`, the ends of the axis, and `counts` of each bar, which sum to n.
    """
    low, high = (float(value) for value in np.quantile(values, (TAIL, 1 - TAIL)))
    if not low < high:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(np.clip(values, low, high), bins=BARS, range=(low, high))
    return {"low": low, "high": high, "counts": counts.tolist()}


def quantiles(values: Floats) -> list[float]:
    """Return the quantiles QUANTILES of float64[n], finite, n >= 1."""
    result: list[float] = np.quantile(values, QUANTILES).tolist()
    return result


def rank_correlation(a: Floats, b: Floats) -> float | None:
    """Compute Spearman's rank correlation: Pearson's correlation of the ranks, where ties have their mean rank.

    Args:
        a: float64[N]; rows where it is not finite are left out.
        b: float64[N], likewise.

    Returns:
        None if fewer than three rows are left or a side is constant.
    """
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return None
    x, y = _centred_ranks(a[both]), _centred_ranks(b[both])
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else None


def _centred_ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    centred: Floats = ranks - (len(values) + 1) / 2
    return centred
